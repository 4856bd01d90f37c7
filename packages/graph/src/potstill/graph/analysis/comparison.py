"""Teacher and students side by side: accuracy over seeds, size, latency, and the page of it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import k_hop_subgraph

from potstill.core import Column, Engine, Report, Training, count_parameters, fingerprint, latency
from potstill.graph.data.check import Kind, check_logits
from potstill.graph.data.tensors import rows
from potstill.graph.models.networks import MLPStudent
from potstill.graph.training.protocol import Progress, Trained, run_protocol
from potstill.graph.training.recipes import FULL_BATCH, NAMES, Recipe

__all__ = [
    "Comparison",
    "compare",
    "full_graph_call",
    "nodes_call",
    "single_node_call",
]


@dataclass
class Comparison:
    """What one teacher and its students reached, over seeds.

    Attributes:
        recipe: Of all of them.
        seeds: In order.
        trained: By name ("teacher", then methods), one for each seed.
        data: The graph of the last seed.
    """

    recipe: Recipe
    seeds: list[int] = field(default_factory=list)
    trained: dict[str, list[Trained]] = field(default_factory=dict)
    data: Data = field(default_factory=Data)

    def percent(self, name: str, part: str = "test") -> list[float]:
        """Accuracies of one of them in percent, by seed."""
        return [100 * trained.accuracy[part] for trained in self.trained[name]]

    def best(self, name: str) -> Trained:
        """The one with the best validation accuracy over the seeds."""
        return max(self.trained[name], key=lambda trained: trained.accuracy["val"])

    def report(self, title: str) -> Report:
        """Table and plots, with latencies measured now."""
        last = list(self.trained)[-1]
        report = Report(
            title,
            summary=self._summary(last),
            columns={
                "accuracy": Column("%", best="max"),
                "parameters": Column(),
                "single node": Column("ms", best="min", digits=3),
                "full graph": Column("ms", best="min", digits=3),
            },
            label="model",
            seed=f"{self.seeds[0]}-{self.seeds[-1]}",
            data=fingerprint(self.data.edge_index, self.data.y)[:12],
        )
        models = {repr(trained[-1].model): trained[-1].model for trained in self.trained.values()}
        times = {shape: self._times(model) for shape, model in models.items()}
        for name, trained in self.trained.items():
            model = trained[-1].model
            figures: dict[str, Any] = {"accuracy": self.percent(name)}
            for part in ("inductive", "production"):
                if part in trained[0].accuracy:
                    figures[part] = self.percent(name, part)
            figures["parameters"] = count_parameters(model)
            report.add(self.label(name), **figures, **times[repr(model)])
        report.bars("accuracy", "Mean over seeds and standard deviation.", "Test accuracy")
        report.scatter(
            "single node",
            "accuracy",
            "The GNN has to collect the neighbourhood of a node first; students read one row. "
            "One thread; students of one shape are one network, timed once.",
            "Accuracy against the latency of a single prediction",
            log=True,
        )
        return report

    def save_student(self, folder: Path) -> None:
        """Save the student of the last method, of its best seed."""
        best = self.best(list(self.trained)[-1])
        if isinstance(best.model, MLPStudent):
            metrics = {k: round(v, 4) for k, v in best.accuracy.items()}
            best.model.save_pretrained(folder, teacher=self.label("teacher"), metrics=metrics)

    def _times(self, model: nn.Module) -> dict[str, Any]:
        """Milliseconds of a prediction, on one thread."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            calls = {"single node": single_node_call, "full graph": full_graph_call}
            return {
                name: 1e3 * latency(call(model, self.data), blocks=9).median
                for name, call in calls.items()
            }
        finally:
            torch.set_num_threads(threads)

    def label(self, name: str) -> str:
        """How a row is called."""
        return f"{self.recipe.teacher} teacher" if name == "teacher" else NAMES.get(name, name)

    def _summary(self, name: str) -> str:
        mean = sum(self.percent(name)) / len(self.seeds)
        teacher = sum(self.percent("teacher")) / len(self.seeds)
        return (
            f"{self.label(name)} reaches {mean:.1f} % without edges; its teacher, which needs "
            f"them, {teacher:.1f} % (test nodes, mean of {len(self.seeds)} seeds)."
        )


def compare(
    graph: Callable[[int], Data],
    recipe: Recipe,
    methods: Iterable[str],
    seeds: Iterable[int],
    *,
    hold_out_rate: float = 0.0,
    logits: Any = None,
    kind: Kind = "logits",
    training: Training = FULL_BATCH,
    engine: Engine | None = None,
    progress: Callable[[str], Progress] = lambda text: False,
    done: Callable[[str], None] = lambda text: None,
    run: Path | str | None = None,
) -> Comparison:
    """Run the whole protocol for each seed.

    Args:
        graph: The checked graph of a seed (its split may depend on it). With ``logits`` that of
            the first seed serves all: their teacher has seen the labels of one split.
        recipe: Sizes, weights and optimizer of teacher and students.
        methods: Names from `METHODS`.
        seeds: Seeds, one run each.
        hold_out_rate: As of `run_protocol`.
        logits: A teacher's logits of all nodes, as `check_logits` takes them; then none is trained.
        kind: Kind of the numbers in ``logits``.
        training: Options that win over the recipe; its ``lr`` is that of the students.
        engine: Device and precision; those of ``training`` by default.
        progress: Label to progress option of `fit`.
        done: Function that gets one line of scores a seed.
        run: Folder with one folder a seed; what is finished there is read back.
    """
    comparison, seeds = Comparison(recipe), list(seeds)
    for seed in seeds:
        if logits is None or not comparison.seeds:
            comparison.data = graph(seed)
        found = run_protocol(
            comparison.data,
            recipe,
            tuple(methods),
            seed=seed,
            hold_out_rate=hold_out_rate,
            z_teacher=None
            if logits is None
            else check_logits(logits, comparison.data.num_nodes, comparison.data.num_classes, kind),
            training=training,
            engine=engine,
            run=None if run is None else Path(run, f"seed-{seed}"),
            progress=partial(_labelled, progress, f"seed {seed}: ", comparison),
        )
        comparison.seeds.append(seed)
        for name, trained in found.items():
            comparison.trained.setdefault(name, []).append(trained)
        scores = (f"{comparison.label(k)} {100 * v.accuracy['test']:.1f}" for k, v in found.items())
        done(f"seed {seed}: {', '.join(scores)} %")
    return comparison


def _labelled(
    progress: Callable[[str], Progress], prefix: str, comparison: Comparison, name: str
) -> Progress:
    return progress(prefix + comparison.label(name))


def full_graph_call(model: nn.Module, data: Data) -> Callable[[], Tensor]:
    """A call that predicts all nodes, for timing."""
    return _without_gradient(model, data.x, data.edge_index, *_weight(data))


def single_node_call(model: nn.Module, data: Data, node: int | None = None) -> Callable[[], Tensor]:
    """A call that predicts one node, as the whole graph would: see `nodes_call`.

    Args:
        model: A student, or a GNN of `potstill.graph.models.networks`.
        data: The graph.
        node: By default one whose degree is the median of the linked nodes.
    """
    if node is None:
        degree = torch.bincount(data.edge_index[1], minlength=data.num_nodes)
        linked = degree.nonzero().flatten()
        node = int(linked[degree[linked].argsort()[len(linked) // 2]]) if len(linked) else 0
    return nodes_call(model, data, torch.tensor([node]))


def nodes_call(model: nn.Module, data: Data, nodes: Tensor) -> Callable[[], Tensor]:
    """A call that predicts some nodes [M], with the answers that the whole graph would give.

    Teachers of `potstill.graph` read the neighbour lists of the graph, made before. Of any other
    module the neighbourhood is collected from the edges, one hop wider than the module reads, so
    that the degrees at its border are right.
    """
    if isinstance(model, MLPStudent):
        return _without_gradient(model, rows(data.x, nodes))
    if callable(near := getattr(model, "logits_of", None)):
        call: Callable[[], Tensor] = partial(near, nodes, data.x, data.edge_index, *_weight(data))
        call()  # makes the lists
        return call
    hops = len(getattr(model, "maps", getattr(model, "convolutions", ())))

    @torch.inference_mode()
    def predict() -> Tensor:
        around, edges, place, kept = k_hop_subgraph(
            nodes, hops + 1, data.edge_index, relabel_nodes=True, num_nodes=data.num_nodes
        )
        z: Tensor = model(rows(data.x, around), edges, *(w[kept] for w in _weight(data)))
        return z[place]

    return predict


def _weight(data: Data) -> list[Tensor]:
    return [data.edge_weight] if "edge_weight" in data else []


def _without_gradient(model: nn.Module, x: Tensor, *edges: Tensor) -> Any:
    inputs = (x,) if isinstance(model, MLPStudent) else (x, *edges)

    @torch.inference_mode()
    def predict() -> Tensor:
        z: Tensor = model(*inputs)
        return z

    return predict
