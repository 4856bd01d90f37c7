"""Pictures of what the benchmarks measure, each with its numbers beside it as CSV.

    python -m benchmarks.graph.plots weights     # accuracy over task weight and temperature
    python -m benchmarks.graph.plots step        # where the time of a student's step goes
    python -m benchmarks.graph.plots latency     # accuracy over the time of a prediction
    python -m benchmarks.graph.plots trees       # how often each computation tree occurs
    python -m benchmarks.graph.plots sizes       # Mirage: ROC-AUC over the bytes that are kept

They go to ``runs/graph``, or to ``--out``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from benchmarks.graph import naive
from benchmarks.graph.mirage import SEEDS, score
from benchmarks.graph.speed import SHAPES, problem
from potstill.core import atomic, generator, latency
from potstill.core.measure.report import csv_text
from potstill.graph import (
    HighFrequency,
    LowFrequency,
    MLPStudent,
    distill,
    load,
    recipe_for,
    teacher_logits,
    train_teacher,
)
from potstill.graph.analysis import nodes_call
from potstill.graph.data import rows as rows_of
from potstill.graph.mirage import (
    DistilledDataset,
    load_tu,
    random_sample,
    split_graphs,
    wl_colors,
)

Rows = list[dict[str, Any]]
BATCHES = (1, 4, 16, 64, 256, 1024)
SHARES = {  # of the edges of the training graphs; below, a class of MUTAG has no pattern
    "MUTAG": (0.02, 0.05, 0.1, 0.2),
    "NCI1": (0.002, 0.005, 0.01, 0.02, 0.05),
}
WEIGHTS, TAUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9), (0.5, 1.0, 1.5, 3.0, 6.0)


def weights(axes: Any, options: argparse.Namespace) -> Rows:
    """Accuracy of FF-G2M over the weight of the labels and the temperature; one teacher."""
    recipe = recipe_for(options.dataset, "GCN")
    recipe = replace(recipe, epochs=min(recipe.epochs, options.epochs))
    data = load(options.dataset, seed=options.seed)
    z = teacher_logits(train_teacher(data, recipe, seed=options.seed).model, data)
    rows: Rows = []
    for weight in WEIGHTS:
        for tau in TAUS:
            changed = replace(recipe, task_weight=weight, tau=tau)
            found = distill(data, z, changed, seed=options.seed).accuracy
            shown = {name: round(100 * found[name], 2) for name in ("val", "test")}
            rows.append({"weight of labels": weight, "tau": tau, **shown})
    grid = torch.tensor([row["test"] for row in rows]).view(len(WEIGHTS), len(TAUS))
    image = axes.imshow(grid, cmap="viridis", aspect="auto")
    for i, line in enumerate(grid.tolist()):
        for j, value in enumerate(line):
            dark = value < float(grid.min() + grid.max()) / 2
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="w" if dark else "k")
    axes.set_xticks(range(len(TAUS)), TAUS)
    axes.set_yticks(range(len(WEIGHTS)), WEIGHTS)
    axes.set_xlabel("temperature of the high-frequency term")
    axes.set_ylabel("weight of the labels")
    axes.set_title(f"FF-G2M on {options.dataset}, one seed: test accuracy [%]", loc="left")
    axes.figure.colorbar(image, ax=axes)
    return rows


def step(axes: Any, options: argparse.Namespace) -> Rows:
    """Milliseconds of the parts of a step, one after the other, as published and in potstill."""
    data, _, z_t = problem(options.dataset)
    layers, width, tau = SHAPES[options.dataset]
    sizes = (data.x.shape[1], width, layers, data.num_classes)
    student, edges = MLPStudent(*sizes).train(), data.edge_index
    official, low, high = (
        naive.Criterion(edges, data.num_nodes, tau),
        LowFrequency(),
        HighFrequency(tau),
    )
    sides = {
        "as published": (naive.copy_mlp(student).train(), data.x.to_dense(), official, False),
        "potstill": (student, data.x, lambda z, t: low(z, t, edges) + high(z, t, edges), True),
    }
    rows: Rows = []
    for name, (model, x, criterion, fused) in sides.items():
        parts = _parts(model, x, lambda z, c=criterion: c(z, z_t), fused, data)  # type: ignore[misc]
        rows += [{"form": name, "part": part, "ms": round(ms, 3)} for part, ms in parts.items()]
    left = dict.fromkeys(sides, 0.0)
    longest = max(sum(row["ms"] for row in rows if row["form"] == form) for form in sides)
    for part in dict.fromkeys(row["part"] for row in rows):
        heights = {row["form"]: row["ms"] for row in rows if row["part"] == part}
        bars = axes.barh(list(sides), list(heights.values()), left=list(left.values()), label=part)
        shown = [f"{ms:.0f}" if ms > longest / 25 else "" for ms in heights.values()]
        axes.bar_label(bars, shown, label_type="center", fontsize=8)
        left = {form: left[form] + heights[form] for form in sides}
    for number, total in enumerate(left.values()):
        axes.annotate(f"{total:.0f} ms", (total, number), (6, 0), textcoords="offset points")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("ms")
    axes.set_title(f"A step of the {layers}x{width} student on {options.dataset}", loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=5, frameon=False)
    return rows


def _parts(
    model: Any, x: Tensor, criterion: Callable[[Tensor], Tensor], fused: bool, data: Any
) -> dict[str, float]:
    """Medians of forward, criterion with its gradient, backward, optimizer and evaluation."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    seen, y = data.train_mask, data.y
    scored = rows_of(x, data.val_mask.nonzero()[:, 0]) if fused else x

    def slope() -> Tensor:
        logits = z.detach().requires_grad_()
        (criterion(logits) + F.cross_entropy(logits[seen], y[seen])).backward()
        assert logits.grad is not None
        return logits.grad

    @torch.no_grad()
    def evaluate() -> None:
        model.eval()
        for _ in range(1 if fused else 3):
            model(scored)
        model.train()

    z = model(x)
    gradient = slope()
    forth = latency(lambda: model(x), blocks=7).median
    both = latency(lambda: model(x).backward(gradient), blocks=7).median
    found = {
        "forward": forth,
        "criteria": latency(slope, blocks=7).median,
        "backward": both - forth,
        "optimizer": latency(optimizer.step, blocks=7).median,
        "evaluation": latency(evaluate, blocks=7).median,
    }
    return {name: 1e3 * seconds for name, seconds in found.items()}


def latency_of_models(axes: Any, options: argparse.Namespace) -> Rows:
    """Accuracy over the time of a node, for teachers of one to three layers and their student.

    A teacher has to collect as many hops as it has layers; in larger batches the time is shared.
    """
    data = load(options.dataset, seed=options.seed)
    recipe = recipe_for(options.dataset, "GCN")
    recipe = replace(recipe, epochs=min(recipe.epochs, options.epochs))
    torch.set_num_threads(1)
    order = torch.randperm(int(data.num_nodes), generator=generator("nodes", options.seed))
    rows: Rows = []
    for layers in (1, 2, 3):
        own = replace(recipe, layers=layers)
        teacher = train_teacher(data, own, seed=options.seed)
        found = {f"GCN, {layers} layer{'s' * (layers > 1)}": teacher}
        if layers == recipe.layers:
            z = teacher_logits(teacher.model, data)
            found["FF-G2M student"] = distill(data, z, own, seed=options.seed)
        for name, trained in found.items():
            for size in BATCHES:
                call = nodes_call(trained.model, data, order[:size])
                ms = 1e3 * latency(call, blocks=7).median
                percent = round(100 * trained.accuracy["test"], 2)
                rows.append({"model": name, "batch": size, "ms": round(ms, 4), "test": percent})
    for name in dict.fromkeys(row["model"] for row in rows):
        own_rows = [row for row in rows if row["model"] == name]
        x, y = ([row[key] for row in own_rows] for key in ("ms", "test"))
        (line,) = axes.plot(x, y, marker="o", label=name)
        for row in (own_rows[0], own_rows[-1]):
            axes.annotate(
                f"{row['batch']}",
                (row["ms"], row["test"]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=line.get_color(),
            )
    axes.set(xscale="log", xlabel="ms for a batch of so many nodes", ylabel="test accuracy [%]")
    axes.set_title(f"Accuracy over latency on {options.dataset}, one thread, one seed", loc="left")
    axes.margins(y=0.15)
    axes.legend(frameon=False)
    return rows


def sizes(axes: Any, options: argparse.Namespace) -> Rows:
    """ROC-AUC of classifiers over the bytes they were trained on: distilled, and at random."""
    rows: Rows = []
    for (name, shares), colour in zip(SHARES.items(), ("C0", "C1"), strict=True):
        graphs = load_tu(name)
        for share in shares:
            scores: dict[str, list[float]] = {}
            kept: dict[str, list[float]] = {}
            for seed in SEEDS:
                split = split_graphs(graphs, seed)
                found = score(split, share, seed, repeats=2, steps=300, everything=False)
                edges = found.small.num_edges_in_all
                sample = DistilledDataset(random_sample(split.train, edges, seed))
                for key, small in (("distilled", found.small), ("random", sample)):
                    scores.setdefault(key, []).append(found.percent[key])
                    kept.setdefault(key, []).append(_bytes(small))
            for key, values in scores.items():
                row = {"set": name, "data": key, "share of edges": share}
                size, value = round(mean(kept[key])), round(mean(values), 2)
                rows.append({**row, "bytes": size, "AUC": value, "spread": round(stdev(values), 2)})
        for key, style in (("distilled", "-o"), ("random", "--s")):
            own = [row for row in rows if row["set"] == name and row["data"] == key]
            x, y, spread = ([row[k] for row in own] for k in ("bytes", "AUC", "spread"))
            axes.errorbar(x, y, spread, fmt=style, color=colour, capsize=3, label=f"{name}, {key}")
    axes.set(xscale="log", xlabel="bytes of the training set (.npz)", ylabel="ROC-AUC [%]")
    axes.set_title("Mirage against a random sample, mean and deviation of five splits", loc="left")
    axes.legend(frameon=False)
    return rows


def _bytes(small: DistilledDataset) -> int:
    with TemporaryDirectory() as folder:
        return small.save(Path(folder, "set.npz")).stat().st_size


def trees(axes: Any, options: argparse.Namespace) -> Rows:
    """Occurrences of the computation trees of MUTAG and NCI1 by rank: the skew Mirage lives on."""
    rows: Rows = []
    for name in ("MUTAG", "NCI1"):
        graphs = load_tu(name)
        for hops in (1, 2, 3):
            counts = torch.bincount(torch.cat(wl_colors(graphs, hops))).sort(descending=True).values
            axes.plot(range(1, len(counts) + 1), counts, label=f"{name}, depth {hops}")
            rows += [
                {"set": name, "depth": hops, "rank": k + 1, "nodes": int(counts[k])}
                for k in range(len(counts))
            ]
    axes.set(xscale="log", yscale="log", xlabel="rank of the tree", ylabel="nodes that have it")
    axes.set_title("Few computation trees make up most nodes", loc="left")
    axes.legend(frameon=False)
    return rows


PICTURES: dict[str, Callable[[Any, argparse.Namespace], Rows]] = {
    "weights": weights,
    "step": step,
    "latency": latency_of_models,
    "trees": trees,
    "sizes": sizes,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw one picture and write it beside its numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(prog="python -m benchmarks.graph.plots", description=__doc__)
    parser.add_argument("picture", choices=PICTURES)
    parser.add_argument("--dataset", default="cora", help="of weights and step: cora or cs")
    parser.add_argument("--seed", type=int, default=2022)  # FF-G2M's protocol
    parser.add_argument("--epochs", type=int, default=500, help="of weights: at most")
    parser.add_argument("--out", type=Path, default=Path("runs/graph"))
    options = parser.parse_args(arguments)
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    rows = PICTURES[options.picture](axes, options)
    options.out.mkdir(parents=True, exist_ok=True)
    with atomic(options.out / f"{options.picture}.png") as temporary:
        figure.savefig(temporary, format="png")
    with atomic(options.out / f"{options.picture}.csv") as temporary:
        temporary.write_text(csv_text(list(rows[0]), rows), encoding="utf-8")
    Console().print(f"wrote {options.out / options.picture}.png and .csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
