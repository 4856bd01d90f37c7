"""The search: costs of all candidates, a shortlist, short distillations, and the best of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from scipy.stats import rankdata
from torch import nn

from potstill.core import (
    ConfigError,
    ShapeError,
    Training,
    fingerprint,
    generator,
    nearest,
    seed_all,
)
from potstill.core.engine import fit_with, resolve_device
from potstill.search.budget import Budget
from potstill.search.candidate import Candidate
from potstill.search.costs import Latency, Timer, arguments, measure, require_steady, static_costs
from potstill.search.elastic import Elastic
from potstill.search.explore import explore
from potstill.search.ledger import Ledger
from potstill.search.report import Found
from potstill.search.scores import NEED_TEACHER, SCORES, initialise
from potstill.search.space import Choice, Space
from potstill.search.tasks import Task

__all__ = ["suggest"]

Fit = Callable[..., Any]
Init = Literal["own", "kaiming", "normal"]
ENUMERATED = 5000
_SEEDS = 3  # of scores that depend on fresh weights; their ranks are averaged


def suggest(
    space: Space,
    task: Task,
    budget: Budget,
    *,
    training: Training = Training(steps=400, lr=1e-3, final=0.0, warmup=0.05),
    score: str = "parameters",
    init: Init = "own",
    shortlist: int = 8,
    candidates: int = ENUMERATED,
    out: str | Path | None = None,
    fit: Fit | None = None,
    timer: Timer = measure,
    sampler: Literal["optuna", "random"] = "optuna",
    supernet: Elastic | None = None,
) -> Found:
    """Which student of a space for a teacher and a budget, by what is measured here.

    First costs: of each candidate, in milliseconds only where the budget has them. Of those that
    the budget allows, the ``shortlist`` with the highest score is distilled for half of the steps,
    and the better half of these for all steps: complete short trainings with the schedule of
    ``training``, since cut ones and shorter ones ranked worse than counting. The best wins.

    Args:
        space: The candidates; as many as ``candidates`` at random, where there are more.
        task: How students are trained and judged.
        budget: Bounds, at least one.
        training: Steps of the last rung, rates, device and seed.
        score: Name of a score in ``potstill.search.scores``; parameters rank best in all tables of
            distilled accuracies that were looked at, and macs for networks of convolutions.
        init: Weights with which scores look at students and teacher: see
            `potstill.search.scores.initialise`.
        shortlist: Candidates of the first rung.
        candidates: Largest number of candidates.
        out: Folder; a search that was killed goes on there. None keeps nothing.
        sampler: What proposes candidates of spaces larger than ``candidates``: optuna's NSGA-II, or
            chance.
        fit: Called as ``fit(distiller, source, folder=..., steps=...)``; by default that of
            ``training``.
        timer: How a model is timed.
        supernet: Trained weights of all candidates, for the score ``elastic``.

    Raises:
        ConfigError: No bound; nothing within the budget, with the cheapest candidate; a score that
            is unknown or lacks something; no candidate that can be built.
        BackendError: Timings that are not steady enough to rank by.
        ShapeError: Students with other outputs than the teacher.
        CheckpointError: The folder holds a search of something else.
    """
    search = _Search(
        space, task, budget, training, score, init, shortlist, out, fit, timer, supernet, sampler
    )
    return search.run(candidates)


class _Search:
    def __init__(
        self, space: Space, task: Task, budget: Budget, training: Training, score: str, init: Init,
        shortlist: int, out: str | Path | None, fit: Fit | None, timer: Timer,
        supernet: Elastic | None, sampler: str,
    ) -> None:  # fmt: skip
        if not budget.bounds:
            raise ConfigError(
                "suggest: budget must have a bound: milliseconds, megabytes, macs or parameters"
            )
        if shortlist < 2 or training.steps is None or training.steps < 2:
            raise ConfigError(
                f"suggest: shortlist and training.steps must be at least 2, got {shortlist} and "
                f"{training.steps}"
            )
        if score != "elastic" or supernet is None:
            require_score(score, task)
        self.supernet, self.sampler = supernet, sampler
        self.space, self.task, self.budget, self.training = space, task, budget, training
        self.score, self.init, self.shortlist, self.timer = score, init, shortlist, timer
        self.out = None if out is None else Path(out)
        self.fit = fit or self._fit
        self.device = resolve_device(training.device)
        self.example = tuple(
            x.to(self.device) if isinstance(x, torch.Tensor) else x for x in arguments(task.example)
        )
        self.notes: list[str] = []
        self.steps = [training.steps // 2, training.steps]
        self.students: dict[str, nn.Module] = {}

    def run(self, most: int) -> Found:
        seed = self.training.seed
        self.ledger = Ledger(
            None if self.out is None else self.out / "search.jsonl",
            {"space": self.space.fingerprint()[:12], "task": self.task.name[:12],
             "budget": self.budget.bounds, "score": self.score, "init": self.init,
             "steps": self.training.steps, "shortlist": self.shortlist, "seed": seed,
             "candidates": most, "sampler": self.sampler, "supernet": self._supernet_name(),
             "device": str(self.device), "example": _shapes(self.example)},
        )  # fmt: skip
        found = self._candidates(most)
        built = self._count(found)
        allowed = self._allowed(built)
        ranked = self._rank(allowed)
        trained = self._halve(ranked[: self.shortlist])
        best = max(trained, key=lambda c: c.accuracy[-1])
        return Found(
            self.space, self.budget, self.task, found, best, self._student(best),
            self.score, self.steps, seed, self.notes,
        )  # fmt: skip

    def _candidates(self, most: int) -> list[Candidate]:
        """All, or as many as are asked for: at random, or as optuna proposes them."""
        space, seed = self.space, self.training.seed
        if space.size <= most:
            return [Candidate(choice) for choice in space]
        self.notes.append(f"{most} of {space.size} candidates were looked at ({self.sampler}).")
        if self.sampler == "random":
            return [Candidate(choice) for choice in space.sample(most, seed)]
        return [Candidate(c) for c in explore(space, self._value, evaluations=most, seed=seed)]

    def _value(self, choice: Choice) -> tuple[float, float]:
        """Score of a candidate, and how far it is beyond the budget, for the sampler."""
        one = Candidate(choice)
        self._cost(one)
        if one.error:
            return -math.inf, math.inf
        self._judge(one)
        name = self.score
        values = self.ledger.get(f"score {name}", one.name, partial(self._score, one, name))
        return sum(values) / len(values), max(one.excess.values(), default=0.0)

    def _supernet_name(self) -> str | None:
        if self.supernet is None:
            return None
        return fingerprint(self.supernet.full.state_dict())[:12]

    # --- costs ----------------------------------------------------------------------------------

    def _count(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Static costs; candidates that cannot be built are told, and left out."""
        for one in found:
            self._cost(one)
        built = [one for one in found if not one.error]
        if not built:
            raise ConfigError(
                f"suggest: space must hold a candidate that can be built, got {len(found)} that "
                f"cannot; {found[0].name}: {found[0].error}"
                if found
                else "suggest: space must hold a candidate, got none; see its valid="
            )
        if len(built) < len(found):
            first = next(one for one in found if one.error)
            self.notes.append(
                f"{len(found) - len(built)} candidates could not be built, e.g. {first.name}: "
                f"{first.error}"
            )
        return built

    def _cost(self, one: Candidate) -> None:
        costs = self.ledger.get("costs", one.name, partial(self._costs, one))
        one.error, one.costs = costs.get("error", ""), costs.get("costs", {})

    def _costs(self, one: Candidate) -> dict[str, Any]:
        try:
            model = self.space.make(one.choice)
        except Exception as error:  # whatever a builder of somebody raises
            return {"error": f"{type(error).__name__}: {error}"}
        return {"costs": static_costs(model.to(self.device), self.example)}

    def _allowed(self, built: Sequence[Candidate]) -> list[Candidate]:
        """Those within the budget."""
        for one in built:
            self._judge(one)
        allowed = [one for one in built if not one.excess]
        if not allowed:
            near = min(built, key=lambda one: max(one.excess.values()))
            missed = ", ".join(
                f"{name} {near.costs[name]:,.4g}, {share:.0%} above"
                for name, share in near.excess.items()
            )
            raise ConfigError(
                f"suggest: budget must allow a candidate, got {self.budget.bounds}; the nearest is "
                f"{near.name} with {missed}: raise the bound, or add smaller choices"
            )
        if len(allowed) == len(built):
            self.notes.append("The budget does not bind: it allows all candidates.")
        return allowed

    def _judge(self, one: Candidate) -> None:
        """What exceeds the budget; the clock runs only where the other bounds allow it."""
        one.excess = self.budget.excess(one.costs)
        if self.budget.milliseconds is not None and not one.excess:
            found = self.ledger.get("latency", one.name, partial(self._time, one))
            one.latency = Latency(**found)
            one.costs["milliseconds"] = one.latency.milliseconds
            one.excess = self.budget.excess(one.costs)

    def _time(self, one: Candidate) -> dict[str, float]:
        found = self.timer(self.space.make(one.choice).to(self.device), self.example)
        require_steady([found])
        return asdict(found)

    # --- scores ---------------------------------------------------------------------------------

    def _rank(self, allowed: list[Candidate]) -> list[Candidate]:
        """Best first: by the mean of the ranks over seeds; what is not finite comes last."""
        for name in dict.fromkeys((self.score, "parameters", "macs", "random")):
            for one in allowed:
                work = partial(self._score, one, name)
                one.scores[name] = self.ledger.get(f"score {name}", one.name, work)
        values = [one.scores[self.score] for one in allowed]
        broken = sum(not all(map(math.isfinite, row)) for row in values)
        if broken:
            self.notes.append(f"{broken} candidates have no finite {self.score}; they come last.")
        ranks = [_ranks([row[seed] for row in values]) for seed in range(len(values[0]))]
        for one, row in zip(allowed, zip(*ranks, strict=True), strict=True):
            one.rank = sum(row) / len(row)
        return sorted(allowed, key=lambda one: one.rank)

    def _score(self, one: Candidate, name: str) -> list[float]:
        if name in ("parameters", "macs"):
            return [one.costs[name]]
        if name == "elastic":
            assert self.supernet is not None
            model = self.supernet.extract(one.choice, self.task.calibration)
            return [float(self.task.accuracy(model))]
        if name == "random":
            return [float(torch.rand((), generator=generator("random", seed, one.name)))
                    for seed in range(_SEEDS)]  # fmt: skip
        batch = self.task.batch or (self.example[0], None)
        values = []
        for seed in range(_SEEDS):
            student = initialise(self.space.make(one.choice, seed), self.init)
            teacher = self._fresh_teacher(seed) if name in NEED_TEACHER else None
            values.append(SCORES[name](student, batch, teacher))
        return values

    @cache  # noqa: B019  (lives as long as the search)
    def _fresh_teacher(self, seed: int) -> nn.Module:
        """The teacher without what it knows: one for all candidates of a seed."""
        seed_all("teacher", seed)
        teacher = copy.deepcopy(self.task.teacher)
        assert teacher is not None
        for module in teacher.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        return initialise(teacher.cpu(), self.init)

    # --- rungs ----------------------------------------------------------------------------------

    def _halve(self, shortlist: list[Candidate]) -> list[Candidate]:
        self._require_outputs(shortlist[0])
        for rung in range(len(self.steps)):
            for one in shortlist:
                work = partial(self._train, one, rung)
                accuracy = self.ledger.get(f"rung {rung}", one.name, work, together=True)
                one.accuracy.append(accuracy)
            shortlist = sorted(shortlist, key=lambda c: -c.accuracy[-1])
            if rung + 1 < len(self.steps):
                shortlist = shortlist[: math.ceil(len(shortlist) / 2)]
        return shortlist

    def _train(self, one: Candidate, rung: int) -> float:
        """A complete short distillation; one that was finished comes from its folder."""
        student = self.space.make(one.choice, self.training.seed)
        folder = f"rung-{rung}/{fingerprint(one.choice)[:12]}"
        self.fit(
            self.task.distiller(student), self.task.source, folder=folder, steps=self.steps[rung]
        )
        if rung + 1 == len(self.steps):
            self.students[one.name] = student
        return float(self.task.accuracy(student))

    def _student(self, one: Candidate) -> nn.Module:
        """The trained student, from its folder where it was trained before a kill."""
        if one.name not in self.students:
            self._train(one, len(self.steps) - 1)
        return self.students[one.name]

    def _fit(self, distiller: Any, source: Any, folder: str, steps: int) -> None:
        run = None if self.out is None else self.out / folder
        fit_with(self.training, distiller, source, steps=steps, progress=False, run=run)

    def _require_outputs(self, one: Candidate) -> None:
        if self.task.teacher is None:
            return
        with torch.no_grad():
            shapes = [
                list(model.to(self.device).eval()(*self.example).shape)
                for model in (self.space.make(one.choice), self.task.teacher)
            ]
        if shapes[0] != shapes[1]:
            raise ShapeError(
                f"suggest: students must have the outputs of the teacher, {shapes[1]}, got "
                f"{shapes[0]} from {one.name}; set num_classes or its like in the fixed arguments"
            )


def require_score(name: str, task: Task) -> None:
    """Refuse a score that is unknown, or lacks something.

    Raises:
        ConfigError: Says what is missing.
    """
    if name not in SCORES:
        raise ConfigError(
            f"suggest: score must be one of {', '.join(SCORES)}, got {name!r}; "
            f"{nearest(name, SCORES)}"
        )
    if name in NEED_TEACHER and (task.teacher is None or task.batch is None):
        raise ConfigError(
            f"suggest: score {name!r} needs a teacher and labelled inputs; without them there are "
            f"{', '.join(sorted(set(SCORES) - NEED_TEACHER))}"
        )


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from the largest on, ties averaged; what is not finite is last (minus infinity too)."""
    return list(rankdata([-v if math.isfinite(v) else math.inf for v in values]) - 1)


def _shapes(example: tuple[Any, ...]) -> list[Any]:
    return [list(x.shape) if isinstance(x, torch.Tensor) else str(type(x)) for x in example]
