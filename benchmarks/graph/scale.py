"""How memory and time grow with the graph: 10^4 to 2 * 10^6 nodes, 30 edges a node.

    python -m benchmarks.graph.scale 2000000     # one size, printed
    python -m benchmarks graph scale             # the curve, recorded

The graph is synthetic: 16 classes, features around a mean for each class, seven of ten edges
between nodes of one class; the teacher is what a node's neighbourhood says about its class. Each
size runs in a process of its own, with features in a memory map, for one epoch of FF-G2M.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from potstill.core import peak_memory
from potstill.core.measure.bench import Figure, at_most, benchmark
from potstill.graph.training import GraphStore, Recipe, distill_in_batches

CLASSES, WIDTH, DEGREE = 16, 64, 30
HARD = "issue 4: scale"


def synthetic(count: int, folder: Path) -> tuple[np.memmap, torch.Tensor, torch.Tensor]:
    """Features on disk, edges in both directions [2 30N], labels."""
    rng = np.random.default_rng(0)
    y = np.sort(rng.integers(0, CLASSES, count))  # sorted, so that a class is a range of numbers
    means = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (count, WIDTH))
    for start in range(0, count, 100_000):
        part = slice(start, start + 100_000)
        noise = rng.normal(scale=2.0, size=(len(y[part]), WIDTH)).astype(np.float32)
        x[part] = means[y[part]] + noise
    x.flush()
    border = np.searchsorted(y, np.arange(CLASSES + 1))
    half = count * DEGREE // 2
    edges = torch.empty(2, 2 * half, dtype=torch.long)
    for start in range(0, half, 2_000_000):
        size = min(2_000_000, half - start)
        source = rng.integers(0, count, size)
        low, high = border[y[source]], border[y[source] + 1]
        near = low + (rng.random(size) * (high - low)).astype(np.int64)
        target = np.where(rng.random(size) < 0.7, near, rng.integers(0, count, size))
        target = np.where(target == source, (target + 1) % count, target)
        pair = torch.from_numpy(np.stack([source, target]))
        edges[:, start : start + size] = pair
        edges[:, half + start : half + start + size] = pair.flip(0)
    return np.load(folder / "x.npy", mmap_mode="r"), edges, torch.from_numpy(y)


def teacher(edges: torch.Tensor, y: torch.Tensor, chunk: int = 2**22) -> torch.Tensor:
    """Counts of the classes around each node, as logits."""
    counts = torch.nn.functional.one_hot(y, CLASSES).float()
    for part in edges.split(chunk, 1):
        counts.view(-1).index_add_(0, part[1] * CLASSES + y[part[0]], torch.ones(part.shape[1]))
    return (counts + 0.5).log()


def once(count: int, report: str) -> None:
    """Build, distil for one epoch, and write what it took to ``report``."""
    torch.set_num_threads(max(1, torch.get_num_threads()))
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        x, edges, y = synthetic(count, Path(name))
        z = teacher(edges, y)
        built = time.perf_counter()
        seen = torch.zeros(count, dtype=torch.bool)
        seen[torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 50]] = (
            True
        )
        store = GraphStore.make(x, edges, z, y, seen)
        number = edges.shape[1]
        del edges
        prepared = time.perf_counter()
        batch = min(16_384, count // 4)
        student, rows = distill_in_batches(
            store, Recipe(hidden=128), nodes=batch, edges=batch, epochs=1, progress=False
        )
        done = time.perf_counter()
        sample = torch.arange(0, count, max(1, count // 10_000))
        right = student.predict(np.asarray(x[sample.numpy()])) == y[sample]
    figures = {
        "nodes": count,
        "edges": number,
        "build_s": built - started,
        "prepare_s": prepared - built,
        "epoch_s": done - prepared,
        "steps": len(rows),
        "low_first": rows[0]["low"],
        "low_last": rows[-1]["low"],
        "accuracy": float(right.float().mean()),
    }
    Path(report).write_text(json.dumps(figures), encoding="utf-8")


def measure(count: int) -> dict[str, float]:
    """What `once` took, with the peak of its memory in GiB."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.json"
        memory = peak_memory(once, count, str(report))
        found: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    return {**found, "peak_gib": memory.peak / 2**30}


@benchmark(
    name="scale",
    budget=600,
    targets={"peak at 2,000,000": at_most(20.0, HARD)},
)
def scale(quick: bool) -> dict[str, Figure]:
    """Memory and time of an epoch from 10^4 to 2 * 10^6 nodes (60 million edges)."""
    figures = {}
    for count in (10_000,) if quick else (10_000, 100_000, 1_000_000, 2_000_000):
        found = measure(count)
        figures[f"peak at {count:,}"] = Figure(found["peak_gib"], "GiB")
        figures[f"preparation at {count:,}"] = Figure(found["prepare_s"], "s", timed=True)
        figures[f"epoch at {count:,}"] = Figure(found["epoch_s"], "s", timed=True)
        figures[f"accuracy at {count:,}"] = Figure(100 * found["accuracy"], "%")
    return figures | ({"peak at 2,000,000": figures["peak at 10,000"]} if quick else {})


if __name__ == "__main__":
    for size in map(int, sys.argv[1:]):
        sys.stdout.write(json.dumps(measure(size)) + "\n")
