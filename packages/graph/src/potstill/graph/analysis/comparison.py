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
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import k_hop_subgraph

from potstill.core import Column, Engine, Report, Training, count_parameters, fingerprint, latency
from potstill.graph.data.check import Kind, check_logits
from potstill.graph.data.scaling import in_units
from potstill.graph.data.tensors import rows
from potstill.graph.models.student import MLPStudent
from potstill.graph.training.protocol import Progress, Trained, methods_for, run_protocol
from potstill.graph.training.recipes import FULL_BATCH, NAMES, Recipe
from potstill.graph.training.scores import SCORES, Score, baseline

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
        recipe: Recipe of all of them.
        seeds: In order.
        trained: By name ("teacher", then methods), one for each seed.
        data: The graph of the last seed.
    """

    recipe: Recipe
    seeds: list[int] = field(default_factory=list)
    trained: dict[str, list[Trained]] = field(default_factory=dict)
    data: Data = field(default_factory=Data)

    @property
    def score(self) -> Score:
        """How the metric of the graph is shown."""
        return SCORES[self.data.get("metric") or "accuracy"]

    def percent(self, name: str, part: str = "test") -> list[float]:
        """The metric of one of them by seed: shares in percent, errors of values as they are.

        On the validation nodes where there are none to test.
        """
        scores = (found.accuracy for found in self.trained[name])
        return [self.score.factor * each.get(part, each["val"]) for each in scores]

    def best(self, name: str) -> Trained:
        """The one with the best validation score over the seeds."""
        return max(self.trained[name], key=lambda found: self.score.sign * found.accuracy["val"])

    def report(self, title: str) -> Report:
        """Table and plots, with latencies measured now."""
        last = list(self.trained)[-1]
        report = Report(
            title,
            summary=self._summary(last),
            columns={
                self.score.title: Column(self.score.unit, best=self.score.best),
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
            figures: dict[str, Any] = {self.score.title: self.percent(name)}
            for part in ("inductive", "production"):
                if part in trained[0].accuracy:
                    figures[part] = self.percent(name, part)
            figures["parameters"] = count_parameters(model)
            report.add(self.label(name), **figures, **times[repr(model)])
        report.bars(
            self.score.title, "Mean over seeds and standard deviation.", f"Test {self.score.title}"
        )
        report.scatter(
            "single node",
            self.score.title,
            "The GNN has to collect the neighbourhood of a node first; students read one row. "
            "One thread; students of one shape are one network, timed once.",
            f"Latency of a single prediction, and {self.score.title}",
            log=True,
        )
        return report

    def save_student(self, folder: Path) -> None:
        """Save the student of the last method, of its best seed, for features as they were read."""
        best = self.best(list(self.trained)[-1])
        if isinstance(best.model, MLPStudent):
            metrics = {k: round(v, 4) for k, v in best.accuracy.items()}
            student = best.model.for_raw(self.data)
            student.save_pretrained(folder, teacher=self.label("teacher"), metrics=metrics)

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
        means = {key: sum(self.percent(key)) / len(self.seeds) for key in self.trained}
        unit, score = f" {self.score.unit}".rstrip(), self.score
        said = "agreement with the teacher" if self.data.get("label_free") else score.title
        text = (
            f"{self.label(name)} reaches {means[name]:.1f}{unit} without edges; its teacher, which "
            f"needs them, {means['teacher']:.1f}{unit} ({said}, test nodes, mean of "
            f"{len(self.seeds)} seeds)."
        )
        least = score.factor * baseline(self.data)
        margin = 0.05 if unit else 1e-3 * abs(least)  # of rounding
        idle = [self.label(k) for k, v in means.items() if score.sign * (v - least) < margin]
        if idle:
            text += (
                f" No better than saying the same of every node ({least:.1f}{unit}): "
                f"{', '.join(idle)}."
            )
        return text


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
        methods: Names from `METHODS`; those that suit the graph where there are none.
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
    comparison, seeds, methods = Comparison(recipe), list(seeds), tuple(methods)
    for seed in seeds:
        if logits is None or not comparison.seeds:
            comparison.data = data = graph(seed)
        found = run_protocol(
            data,
            recipe,
            methods or methods_for(data),
            seed=seed,
            hold_out_rate=hold_out_rate,
            z_teacher=None
            if logits is None
            else in_units(data, check_logits(logits, len(data.y), data.num_classes, kind)),
            training=training,
            engine=engine,
            run=None if run is None else Path(run, f"seed-{seed}"),
            progress=partial(_labelled, progress, f"seed {seed}: ", comparison),
        )
        comparison.seeds.append(seed)
        for name, trained in found.items():
            comparison.trained.setdefault(name, []).append(trained)
        scale, unit = comparison.score.factor, comparison.score.unit
        scores = (f"{comparison.label(k)} {scale * v.accuracy.get('test', v.accuracy['val']):.1f}"
                  for k, v in found.items())  # fmt: skip
        done(f"seed {seed}: {', '.join(scores)} {unit or comparison.score.title}")
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
        model: A student, or a GNN of `potstill.graph.models.teachers`.
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

    GCN and SAGE of `potstill.graph` read the neighbour lists of the graph, made before. Of another
    module that is made of PyG's convolutions the neighbourhood is collected from the edges, one hop
    wider than the module reads, so that the degrees at its border are right; any other sees the
    whole graph.
    """
    if isinstance(model, MLPStudent):
        return _without_gradient(model, rows(data.x, nodes))
    if callable(near := getattr(model, "logits_of", None)):
        call: Callable[[], Tensor] = partial(near, nodes, data.x, data.edge_index, *_weight(data))
        call()  # makes the lists
        return call
    hops = sum(getattr(m, "K", 1) or 1 for m in model.modules() if isinstance(m, MessagePassing))
    if not hops:
        whole = full_graph_call(model, data)
        return lambda: whole()[nodes]

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
