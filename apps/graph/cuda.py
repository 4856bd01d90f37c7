"""A graph of 10 million nodes and 300 million edges, distilled from memory maps; then one node.

python -m apps.graph.cuda                    needs 20 GiB of disk and 40 GiB of memory
python -m apps.graph.cuda --nodes 1000000
"""

import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from apps import card
from potstill.core import Engine
from potstill.core.measure.report import draw_svg
from potstill.graph import GCNTeacher, Recipe
from potstill.graph.analysis import single_node_call
from potstill.graph.training import GraphStore, distill_in_batches

CLASSES, WIDTH, DEGREE, CHUNK = 16, 64, 30, 2**21


def synthetic(count: int, folder: Path) -> tuple[np.ndarray, Tensor, Tensor]:
    """Features in a memory map [N 64], edges in both directions [2 30N], labels [N].

    Seven of ten edges stay within a class; a class is a range of numbers.
    """
    rng = np.random.default_rng(0)
    y = np.sort(rng.integers(0, CLASSES, count))
    border = np.searchsorted(y, np.arange(CLASSES + 1))
    means = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (count, WIDTH))
    for start in range(0, count, CHUNK):
        part = y[start : start + CHUNK]
        noise = rng.standard_normal((len(part), WIDTH), np.float32)
        x[start : start + CHUNK] = means[part] + 2 * noise
    half = count * DEGREE // 2
    shape = (2, 2 * half)
    edges = np.lib.format.open_memmap(folder / "edges.npy", "w+", np.int64, shape)
    for start in range(0, half, CHUNK):
        size = min(CHUNK, half - start)
        source = rng.integers(0, count, size)
        low, high = border[y[source]], border[y[source] + 1]
        near = low + (rng.random(size) * (high - low)).astype(np.int64)
        target = np.where(rng.random(size) < 0.7, near, rng.integers(0, count, size))
        target = np.where(target == source, (target + 1) % count, target)
        pair = np.stack([source, target])
        edges[:, start : start + size] = pair
        edges[:, half + start : half + start + size] = pair[::-1]
    return x, torch.from_numpy(edges), torch.from_numpy(y)


def votes(edges: Tensor, y: Tensor) -> Tensor:
    """Counts of the classes around each node, as logits: the teacher."""
    counts = torch.nn.functional.one_hot(y, CLASSES).float().to(card.DEVICE)
    labels, one = y.to(card.DEVICE), torch.ones(1, device=card.DEVICE)
    for part in edges.split(CHUNK, 1):
        source, target = part.to(card.DEVICE)
        counts.view(-1).index_add_(0, target * CLASSES + labels[source], one.expand(len(target)))
    return (counts + 0.5).log().cpu()


def main(arguments: Sequence[str] | None = None) -> Path:
    """Build, distil, serve; returns the page."""
    about = (__doc__ or "").splitlines()[0]
    options = card.options_of(about, arguments, nodes="how many (10000000)")
    count = 2000 if options.small else int(options.nodes or 10_000_000)
    marks = [("begin", time.perf_counter())]
    with tempfile.TemporaryDirectory(dir=options.out) as name:
        x, edges, y = synthetic(count, Path(name))
        marks.append(("made", time.perf_counter()))
        z = votes(edges, y)
        seen = torch.zeros(count, dtype=torch.bool)
        seen[:: max(count // (count // 50), 1)] = True
        store = GraphStore.make(x, edges, z, y, seen)
        marks.append(("prepared", time.perf_counter()))
        size = min(65_536, count // 4)
        with Engine() as engine:
            student, rows = distill_in_batches(
                store, Recipe(hidden=128), nodes=size, edges=size, progress=False, engine=engine
            )
        marks.append(("distilled for an epoch", time.perf_counter()))
        sample = torch.arange(0, count, max(1, count // 10_000))
        right = float((student.predict(np.asarray(x[sample.numpy()])) == y[sample]).float().mean())
        print(f"{count:,} nodes, {edges.shape[1]:,} edges; {100 * right:.1f} % of the classes")
        took = {b[0]: b[1] - a[1] for a, b in pairwise(marks)}
        print(", ".join(f"{what} in {seconds:.1f} s" for what, seconds in took.items()))
        # a network has to collect the neighbours of the node, the student reads its row
        network = GCNTeacher(WIDTH, 128, 2, CLASSES).eval()
        data = Data(x=torch.from_numpy(np.asarray(x[: min(count, 100_000)])))
        inside = (edges[:, : 4 * CHUNK] < data.num_nodes).all(0).nonzero().flatten()
        data.edge_index = edges[:, inside].contiguous()
        with torch.inference_mode():
            calls = {
                "the student": single_node_call(student, data),
                "a GCN": single_node_call(network, data),
            }
            serving = card.table(card.turns(calls, rounds=3 if options.small else 9), "nodes", 1)

    def curve(axes: Any) -> None:
        for term in ("low", "high"):
            axes.plot([row[term] / rows[0][term] for row in rows], label=term)
        axes.legend()
        axes.set_xlabel("step")
        axes.set_ylabel("term, of the first step's")

    facts = "".join(f"<p>{what} in {seconds:.1f} s</p>" for what, seconds in took.items())
    title = f"{count:,} nodes, {DEGREE * count:,} edges: {100 * right:.1f} % of the classes right"
    sections = {title: facts, "The terms": draw_svg(curve), "One node": serving}
    return card.write(options, "A large graph on a GPU", sections)


if __name__ == "__main__":
    main()
