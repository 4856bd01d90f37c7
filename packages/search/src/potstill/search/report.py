"""The page of a search: costs against accuracy, and how good the score was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from potstill.core import Column, Report
from potstill.search.budget import UNITS, Budget
from potstill.search.candidate import Candidate
from potstill.search.check import agreement
from potstill.search.space import Space
from potstill.search.tasks import Task

__all__ = ["Found", "costs_report", "pareto"]


@dataclass
class Found:
    """The answer of a search.

    Attributes:
        space: Where it was searched.
        budget: The bounds.
        task: How students were trained and judged.
        candidates: All candidates.
        best: The answer.
        student: Its model, trained as in the last rung.
        score: Name of the score that made the shortlist.
        steps: Steps of each rung.
        seed: Seed.
        notes: What a reader has to know.
    """

    space: Space
    budget: Budget
    task: Task
    candidates: list[Candidate]
    best: Candidate
    student: nn.Module
    score: str
    steps: list[int]
    seed: int
    notes: list[str]

    def report(self) -> Report:
        """A page: Pareto plots, the trained candidates, and how good the score was."""
        return _found_report(self)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats: (cost, accuracy), by rising cost.

    A point is beaten by one that costs no more and is no less accurate, and better in one of them.

    Example:
        >>> pareto([(1, 60), (2, 55), (3, 70), (3, 65)])
        [0, 2]
    """
    best = -math.inf
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        value = points[index][1]
        if value > best or (front and points[index] == points[front[-1]]):
            front.append(index)
            best = value
    return front


def costs_report(candidates: Sequence[Candidate], title: str, **about: Any) -> Report:
    """A table of what candidates cost."""
    report = Report(title, columns=_columns(candidates), label="candidate", **about)
    for one in candidates:
        note = one.error or ("" if one.latency is None or one.latency.steady else "unsteady clock")
        values: dict[str, Any] = {**_costs(one), **({"note": note} if note else {})}
        report.add(one.name, **values)
    return report


def _found_report(found: Found) -> Report:
    """The answer with its reasons: Pareto plots, trained candidates, agreement of the scores."""
    trained = [one for one in found.candidates if one.accuracy]
    trained.sort(key=lambda one: [len(one.accuracy), one.accuracy[-1]], reverse=True)
    bounds = ", ".join(f"{k} at most {v:,.4g}" for k, v in found.budget.bounds.items())
    allowed = sum(not (one.excess or one.error) for one in found.candidates)
    reference = found.task.reference
    teacher = "" if reference is None else f", the teacher {reference:.2f}"
    report = Report(
        "Which student",
        summary=f"{found.best.name}: {found.best.accuracy[-1]:.2f} after {found.steps[-1]} steps"
        f"{teacher}. {allowed} of {len(found.candidates)} candidates are within the budget "
        f"({bounds}); {len(trained)} of them were distilled.",
        columns=_columns(trained) | {"half": Column(), "whole": Column(best="max")},
        label="student", seed=found.seed, data=found.task.name[:12],
    )  # fmt: skip
    for one in trained:
        values: dict[str, Any] = dict(zip(("half", "whole"), one.accuracy, strict=False))
        report.add(one.name, **_costs(one), **values)
    axis = next(iter(found.budget.bounds))
    report.plot(
        lambda axes: _draw_front(axes, found, trained, axis),
        f"Accuracy of the distilled candidates against {axis}. Line: those of all steps that no "
        "other beats; star: the answer; dashed: the budget.",
        "What it costs and what it gives",
    )
    report.plot(
        lambda axes: _draw_space(axes, found, axis),
        f"All candidates: {axis} against the number of parameters; those within the budget are "
        "filled.",
        "The space",
    )
    _agreement(report, found, trained)
    if found.notes:
        report.text("\n\n".join(found.notes), "Notes")
    return report


def _columns(candidates: Sequence[Candidate]) -> dict[str, Column]:
    known = {name for one in candidates for name in one.costs}
    return {name: Column(unit) for name, unit in UNITS.items() if name in known}


def _costs(one: Candidate) -> dict[str, Any]:
    return {name: one.costs[name] for name in UNITS if name in one.costs}


def _agreement(report: Report, found: Found, trained: Sequence[Candidate]) -> None:
    """Scores against the accuracies of the first rung, in which all of the shortlist took part."""
    names = dict.fromkeys((found.score, "parameters", "macs", "random"))
    scores = {n: [sum(o.scores[n]) / len(o.scores[n]) for o in trained] for n in names}
    finished = [one for one in trained if len(one.accuracy) > 1]
    rows = agreement(scores, [one.accuracy[0] for one in trained], seed=found.seed)
    cells = [
        [row.name + ", used" * (row.name == found.score), row.tau, row.low, row.high, row.regret,
         f"{row.count}, too few for an interval" if row.few else row.count]
        for row in rows
    ]  # fmt: skip
    header = ["score", "Kendall's tau", "from", "to", "regret", "candidates"]
    report.table(header, cells, "How well scores ranked what was distilled")
    half, whole = [one.accuracy[0] for one in finished], [one.accuracy[1] for one in finished]
    if len(finished) > 2:
        row = agreement({"half": half}, whole, seed=found.seed)[0]
        report.text(
            f"Of the {len(finished)} candidates with both trainings, the accuracy after half of "
            f"the steps ranks that after all of them with a tau of {row.tau:.2f}."
        )


def _draw_front(axes: Any, found: Found, trained: Sequence[Candidate], axis: str) -> None:
    points = [(one.costs[axis], one.accuracy[-1]) for one in trained]
    halves = [p for p, one in zip(points, trained, strict=True) if len(one.accuracy) == 1]
    wholes = [p for p, one in zip(points, trained, strict=True) if len(one.accuracy) > 1]
    if halves:
        axes.plot(*zip(*halves, strict=True), "o", mfc="none", label="half of the steps")
    axes.plot(*zip(*wholes, strict=True), "o", label="all steps")
    axes.plot(*zip(*[wholes[i] for i in pareto(wholes)], strict=True), "-", zorder=1)
    axes.plot(found.best.costs[axis], found.best.accuracy[-1], "*", ms=14, label=found.best.name)
    axes.axvline(found.budget.bounds[axis], ls="--", color="#8b949e")
    if found.task.reference is not None:
        axes.axhline(found.task.reference, ls=":", color="#8b949e", label="teacher")
    _label(axes, axis, "accuracy")


def _draw_space(axes: Any, found: Found, axis: str) -> None:
    for fill, label, kept in (("none", "beyond the budget", False), (None, "within it", True)):
        some = [
            one for one in found.candidates
            if axis in one.costs and not one.error and kept is not bool(one.excess)
        ]  # fmt: skip
        if some:
            x, y = [o.costs[axis] for o in some], [o.costs["parameters"] for o in some]
            axes.plot(x, y, "o", ms=4, mfc=fill, label=label)
    axes.set_yscale("log")
    axes.axvline(found.budget.bounds[axis], ls="--", color="#8b949e")
    _label(axes, axis, "parameters")


def _label(axes: Any, x: str, y: str) -> None:
    if not UNITS[x]:
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(_short)
    axes.set_xlabel(f"{x} [{UNITS[x]}]" if UNITS[x] else x)
    axes.set_ylabel(y)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _short(value: float, _: Any) -> str:
    """A count in millions or thousands."""
    units = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (0, ""))
    size, sign = next(unit for unit in units if value >= unit[0] or not unit[0])
    return f"{value / (size or 1):g}{sign}"
