"""Information drowning: what a student takes over from its teacher, and what it loses on the way.

While the low-frequency agreement of a student improves (labels, similarity to neighbours), the
high-frequency one (differences along edges) may not. These are the figures that show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from potstill.core import Column, ConfigError, Engine, Report, Training, atomic
from potstill.core.measure.report import csv_text
from potstill.graph.analysis.spectral import Spectrum, dirichlet_ratio, spectral_energy
from potstill.graph.criteria.frequency import HighFrequency
from potstill.graph.training.protocol import (
    Progress,
    Trained,
    distill,
    teacher_logits,
    train_teacher,
    with_reliability,
)
from potstill.graph.training.recipes import FULL_BATCH, NAMES, Recipe
from potstill.graph.training.scores import SCORES, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Diagnosis", "diagnose", "measure", "two_hops"]

_TITLES = {
    "edge_kl": "divergence of edge differences [nats]",
    "cosine": "cosine similarity to neighbours",
    "cosine_2": "cosine similarity two hops away",
    "dirichlet": "Dirichlet ratio of predictions",
    "agreement": "agreement with the teacher's label",
}


@torch.no_grad()
def measure(
    z_s: Tensor, z_t: Tensor, edge_index: Tensor, pairs_2: Tensor | None = None
) -> dict[str, float]:
    """The figures of one student (or of the teacher itself) against a teacher.

    Source: Wu et al. (FF-G2M), AAAI 2023, section 3 (the definitions are ours).

    Args:
        z_s: Logits [N C].
        z_t: The teacher's logits [N C].
        edge_index: [2 E] without self-loops.
        pairs_2: Pairs of nodes two hops apart as of `two_hops`, for ``cosine_2``.

    Returns:
        ``edge_kl``: mean over edges of ``KL(softmax|z_t[i]-z_t[j]| || softmax|z_s[i]-z_s[j]|)``;
        ``cosine``: mean similarity of softmax outputs along edges; ``cosine_2``: the same over
        ``pairs_2``; ``dirichlet``: of the softmax outputs; ``agreement``: share of equal labels.
    """
    p = torch.softmax(z_s, 1)
    figures = {
        "edge_kl": float(HighFrequency(1.0)(z_s, z_t, edge_index)),
        "cosine": _similarity(p, edge_index),
        "dirichlet": dirichlet_ratio(p, edge_index),
        "agreement": float((z_s.argmax(1) == z_t.argmax(1)).float().mean()),
    }
    if pairs_2 is not None:
        figures["cosine_2"] = _similarity(p, pairs_2)
    return figures


def two_hops(edge_index: Tensor, num_nodes: int, most: int = 200_000, seed: int = 0) -> Tensor:
    """Pairs of nodes with a common neighbour and no edge, [2 P], each in both directions.

    Args:
        edge_index: [2 E].
        num_nodes: N.
        most: Draw so many when there are more.
        seed: Seed of the draw.
    """
    import numpy as np
    import scipy.sparse as sp

    ones = np.ones(edge_index.shape[1], dtype=np.int8)
    a = sp.csr_matrix((ones, edge_index.cpu().numpy()), (num_nodes, num_nodes)).astype(bool)
    reached = (a @ a).tocsr().astype(np.int8)
    reached.setdiag(0)
    far = (reached > reached.multiply(a)).tocoo()
    pairs = torch.from_numpy(np.stack([far.row, far.col])).long()
    if pairs.shape[1] > most:
        chosen = torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(seed))
        pairs = pairs[:, chosen[:most].sort().values]
    return pairs


@dataclass
class Diagnosis:
    """The curves of several students of one teacher.

    Attributes:
        data: The graph.
        z_teacher: Logits that they learn from.
        teacher: Its own figures.
        curves: By method, one row a look, with ``epoch`` and the figures of `measure`.
        students: By method, trained.
    """

    data: Data
    z_teacher: Tensor
    teacher: dict[str, float]
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    students: dict[str, Trained] = field(default_factory=dict)

    def final(self, method: str) -> dict[str, float]:
        """The figures of the student with the best validation weights, and its metric."""
        z = self.students[method].model.logits(self.data.x)
        own = measure(z, self.z_teacher, self.data.edge_index, self._pairs())
        return {"accuracy": self.students[method].accuracy["test"], **own}

    def report(self, title: str) -> Report:
        """Table of the final figures; curves, spectra and where the students fall behind."""
        score_name = SCORES[self.data.get("metric") or "accuracy"].title
        columns = {score_name: Column("%", best="max"), "edge_kl": Column("nats", best="min")}
        report = Report(title, columns=columns, label="student", summary=self._summary())
        reached = score(self.data, self.z_teacher, self.data.test_mask)
        teacher = {"accuracy": reached, **self.teacher}
        finals = {NAMES.get(name, name): self.final(name) for name in self.students}
        for name, figures in {"teacher": teacher, **finals}.items():
            shown: dict[str, Any] = {score_name: 100 * figures["accuracy"]}
            shown |= {key: value for key, value in figures.items() if key != "accuracy"}
            report.add(name, **shown)
        for key, heading in _TITLES.items():
            if key in self.teacher:
                report.plot(self._curves(key, heading), heading, f"While training: {heading}")
        report.plot(
            partial(self._draw_spectra, self._spectra()),  # decomposed once, drawn several times
            "Share of the energy of the predictions by frequency.",
            "Spectrum",
        )
        report.plot(
            self._by_degree,
            "Accuracy of the student less that of the teacher, by degree of the test node.",
            "Where the student falls behind",
        )
        report.plot(
            self._by_homophily,
            "The same by the share of neighbours of the node's own class.",
            "Without the neighbours' help",
        )
        return report

    def _pairs(self) -> Tensor | None:
        return self.data.get("pairs_2")

    def _summary(self) -> str:
        parts = (f"{NAMES.get(k, k)} {self.final(k)['edge_kl']:.4f}" for k in self.students)
        return f"Divergence of differences along edges: {', '.join(parts)} nats (lower is closer)."

    def _curves(self, key: str, heading: str) -> Any:
        def draw(axes: Axes) -> None:
            for name, rows in self.curves.items():
                epochs = [row["epoch"] for row in rows]
                axes.plot(epochs, [row[key] for row in rows], label=NAMES.get(name, name))
            if key != "edge_kl":
                axes.axhline(self.teacher[key], color="0.5", linestyle="--", label="teacher")
            axes.set_xlabel("epoch")
            axes.set_ylabel(heading)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            if key == "edge_kl":
                axes.set_yscale("log")

        return draw

    def _spectra(self) -> dict[str, Spectrum]:
        signals = {NAMES.get(k, k): t.model.logits(self.data.x) for k, t in self.students.items()}
        signals["teacher"] = self.z_teacher  # last, so that students keep their colours
        return {
            name: spectral_energy(torch.softmax(z, 1), self.data.edge_index, bins=16)
            for name, z in signals.items()
        }

    def _draw_spectra(self, spectra: dict[str, Spectrum], axes: Axes) -> None:
        for name, spectrum in spectra.items():
            line = axes.stairs(spectrum.energy.numpy(), spectrum.edges.numpy(), label=name)
            if name == "teacher":
                line.set(color="0.5", linestyle="--")
        axes.set_yscale("log")
        axes.set_xlabel("eigenvalue of the Laplacian")
        axes.set_ylabel("share of energy")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    def _by_degree(self, axes: Axes) -> None:
        degree = torch.bincount(self.data.edge_index[1], minlength=self.data.num_nodes)
        borders = [0, 1, 2, 3, 5, 9, 17, 10**9]
        names = ["0", "1", "2", "3-4", "5-8", "9-16", ">16"]
        self._gaps(axes, degree, borders, names)
        axes.set_xlabel("degree")

    def _by_homophily(self, axes: Axes) -> None:
        source, target = self.data.edge_index
        same = (self.data.y[source] == self.data.y[target]).float()
        total = torch.zeros(self.data.num_nodes).index_add_(0, target, same)
        degree = torch.bincount(target, minlength=self.data.num_nodes)
        share = torch.where(degree > 0, total / degree.clamp_min(1), -1)
        borders = [0, 0.2, 0.4, 0.6, 0.8, 1.01]
        self._gaps(axes, share, borders, ["0-20 %", "20-40 %", "40-60 %", "60-80 %", "80-100 %"])
        axes.set_xlabel("neighbours of the same class")

    def _gaps(self, axes: Axes, level: Tensor, borders: list[Any], names: list[str]) -> None:
        tested, y = self.data.test_mask, self.data.y
        right_t = self.z_teacher.argmax(1) == y
        for number, (name, trained) in enumerate(self.students.items()):
            right = trained.model.predict(self.data.x) == y
            gap = (right.float() - right_t.float())[tested]
            inside = level[tested]
            bins = [(inside >= a) & (inside < b) for a, b in pairwise(borders)]
            heights = [100 * float(gap[b].mean()) if bool(b.any()) else 0.0 for b in bins]
            width = 0.8 / len(self.students)
            places = [k + (number - len(self.students) / 2 + 0.5) * width for k in range(len(bins))]
            axes.bar(places, heights, width, label=NAMES.get(name, name))
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel("student - teacher [points]")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    def save(self, folder: Path, title: str) -> Report:
        """Write the page, its plots and ``curves.csv`` to ``folder``."""
        report = self.report(title)
        report.save(folder)
        self.save_curves(folder)
        return report

    def save_curves(self, folder: Path) -> None:
        """Write ``curves.csv`` to ``folder``."""
        rows = [{"method": k, **row} for k, curve in self.curves.items() for row in curve]
        with atomic(folder / "curves.csv") as temporary:
            temporary.write_text(csv_text(list(rows[0]), rows), encoding="utf-8")


def diagnose(
    data: Data,
    recipe: Recipe,
    methods: Iterable[str] = ("mlp", "glnn", "lfd", "hfd", "ff-g2m"),
    *,
    seed: int = 0,
    every: int = 5,
    training: Training = FULL_BATCH,
    engine: Engine | None = None,
    progress: Callable[[str], Progress] = lambda label: False,
    run: Path | str | None = None,
) -> Diagnosis:
    """Train one teacher and several students, and measure them while they train.

    Args:
        data: A checked graph.
        recipe: Sizes, weights and optimizer of all of them.
        methods: Names from `METHODS`.
        seed: Seed of teacher and students.
        every: Epochs between two measurements.
        training: Options that win over the recipe; its ``lr`` is that of the students.
        engine: Device and precision; those of ``training`` by default.
        progress: Label to progress option of `fit`.
        run: Folder with one folder for each of them; what is finished there is read back.

    Raises:
        ConfigError: ``every`` below 1, or a graph with several labels or values.
    """
    if every < 1:
        raise ConfigError(f"diagnose: every must be at least 1 epoch, got {every}")
    if data.get("task") in ("labels", "values"):
        raise ConfigError(
            f"diagnose: the graph must have one class a node, got {data.task}; the figures compare "
            "distributions over classes"
        )

    def options(name: str) -> dict[str, Any]:
        return {
            "seed": seed, "engine": engine, "progress": progress(NAMES.get(name, name)),
            "run": None if run is None else Path(run, name),
            "training": training if name != "teacher" else replace(training, lr=None),
        }  # fmt: skip

    teacher = train_teacher(data, recipe, **options("teacher"))
    z_t = teacher_logits(teacher.model, data)
    if "krd" in (methods := tuple(methods)):
        data = with_reliability(data, teacher.model, seed)
    data = data.__copy__()
    data.pairs_2 = two_hops(data.edge_index, data.num_nodes)
    found = Diagnosis(data, z_t, measure(z_t, z_t, data.edge_index, data.pairs_2))
    for method in methods:
        own = options(method)
        score = _measuring(data, z_t, every, own["run"])
        trained = distill(data, z_t, recipe, method, validation=score, **own)
        found.students[method] = trained
        found.curves[method] = [
            {"epoch": row["step"], **{k: row[k] for k in found.teacher}}
            for row in trained.history
            if "edge_kl" in row
        ]
    return found


def _measuring(data: Data, z_t: Tensor, every: int, run: Path | None) -> Any:
    """A validation that also measures; the epoch is counted from where an earlier run stopped."""
    epochs: Iterator[int] | None = None

    def look(student: nn.Module) -> dict[str, float]:
        nonlocal epochs
        if epochs is None:  # `fit` has opened the history, and has not written to it yet
            history = run and run / "history.jsonl"
            epochs = count(len(history.read_text().splitlines()) if history else 0)
        z = student(data.x.to(next(student.parameters()).device)).cpu()
        figures = {"val": score(data, z, data.val_mask)}
        if next(epochs) % every == 0:
            figures |= measure(z.float(), z_t, data.edge_index, data.pairs_2)
        return figures

    return look


def _similarity(p: Tensor, pairs: Tensor) -> float:
    if not pairs.numel():
        return float("nan")
    unit = torch.nn.functional.normalize(p, dim=1)
    return float((unit[pairs[0]] * unit[pairs[1]]).sum(1).mean())
