"""When training ends and what it trains until then: budget, stages, validation, run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from torch.optim import Optimizer

from potstill.core.errors import ConfigError
from potstill.core.vocabulary.mean import Mean
from potstill.core.vocabulary.objective import Objective
from potstill.core.vocabulary.schedule import Schedule

__all__ = ["MakeOptimizer", "Plan", "Run", "Stage", "Turn", "Validation"]

MakeOptimizer = Callable[..., Optimizer]
"""Called as ``optimizer([(name, parameter), ...], lr=lr)``; torch's optimizers are such."""

Trainable = Sequence[str] | Callable[[str], bool]
"""Patterns such as ``"student.blocks.*"``, or a predicate on the name of a parameter."""


def matches(trainable: Trainable | None, name: str) -> bool:
    """Whether the parameter called ``name`` is among ``trainable``; None means all."""
    if trainable is None:
        return True
    if callable(trainable):
        return bool(trainable(name))
    return any(fnmatchcase(name, pattern) for pattern in trainable)


@dataclass(frozen=True)
class Turn:
    """One player of a stage in which several alternate: adversary, critic, bilevel weights.

    A step runs the turns of its stage in order. Each trains its own parameters with its own
    optimizer; during its turn all other parameters are constants, ``distiller.objective`` is its
    objective and ``distiller.turn`` its name. Its columns in the history are ``name/term``.

    Args:
        name: Name in the history, in checkpoints and in ``distiller.turn``.
        trainable: Parameters of the distiller that train in this turn; turns may share some.
        objective: Terms of this turn; those of the stage by default.
        optimizer: Optimizer factory; that of `fit` by default.
        lr: Learning rate; that of the stage by default.
        schedule: Factor of the learning rate; that of the stage by default.
        clip: Largest total norm of the gradient; that of `fit` by default.
        times: Updates per step, each with batches of its own.
        every: Steps from one turn to the next; 1 is every step.
    """

    name: str
    trainable: Trainable
    objective: Objective | None = None
    optimizer: MakeOptimizer | None = None
    lr: float | None = None
    schedule: Schedule | None = None
    clip: float | None = None
    times: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ConfigError(f"Turn: name must be a word without '/', got {self.name!r}")
        if isinstance(self.trainable, str):
            raise ConfigError(
                f"Turn: trainable must be a sequence of patterns, got {self.trainable!r}; "
                f"write [{self.trainable!r}]"
            )
        if self.times < 1 or self.every < 1:
            raise ConfigError(
                f"Turn: times and every must be at least 1, got {self.times} and {self.every}"
            )


@dataclass(frozen=True)
class Stage:
    """An interval of training with its own objective, parameters and learning rate.

    Every stage starts a new optimizer, and both the step that objectives see and the progress that
    schedules see count from its start. What is None is as given to `fit`.

    Args:
        steps: Length in steps; or
        share: length as a share of the budget in (0, 1]; the shares of all stages sum to 1.
        objective: The terms of this stage.
        trainable: Parameters of the distiller that train: patterns such as
            ``"student.blocks.*"``, or a predicate on the name.
        lr: Learning rate.
        schedule: Factor of the learning rate.
        name: Label of the progress line.
        turns: Players that alternate within each step; none for one player.
    """

    steps: int | None = None
    share: float | None = None
    objective: Objective | None = None
    trainable: Trainable | None = None
    lr: float | None = None
    schedule: Schedule | None = None
    name: str = ""
    turns: Sequence[Turn] = ()

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.share is None):
            raise ConfigError(
                f"Stage: give steps or share, one of them, got {self.steps} and {self.share}"
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"Stage: steps must be at least 1, got {self.steps}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError(f"Stage: share must be in (0, 1], got {self.share}")
        names = [turn.name for turn in self.turns]
        if len(set(names)) < len(names):
            raise ConfigError(f"Stage: turns must have different names, got {', '.join(names)}")


@dataclass(frozen=True)
class Validation:
    """How the student is judged while it trains; the best weights are the ones that stay.

    Args:
        score: Gets the student (its moving average, where there is one) in eval mode and returns
            a number, or several by name. A signal may end it by an exception, and a continued run
            calls it again: what it changes of the student it must put back in a ``finally``.
        every: Steps between validations; the last step is always validated.
        patience: Stop after so many validations without improvement.
        mode: Direction: "max" if more is better.
        key: Which of several numbers decides; the first by default.
        ties: Which of equally good weights are kept: the first or the latest.
        split: Each of several processes scores a part: ``score(student, part)`` gets the slice of
            the items that are its own, every W-th, and returns a `Mean`, or several by name, of
            their values, such as ``Mean.of(values)``, of none too. What is no mean over items
            (the area under a curve) is scored whole.
    """

    score: Callable[..., float | Mean | Mapping[str, float | Mean]]
    every: int
    patience: int | None = None
    mode: Literal["max", "min"] = "max"
    key: str | None = None
    ties: Literal["first", "latest"] = "first"
    split: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"Validation: every must be at least 1 step, got {self.every}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"Validation: patience must be at least 1, got {self.patience}")
        if self.mode not in ("max", "min") or self.ties not in ("first", "latest"):
            raise ConfigError(
                f"Validation: mode must be max or min and ties first or latest, got {self.mode!r} "
                f"and {self.ties!r}"
            )

    def improves(self, value: float, best: float | None) -> bool:
        """Whether ``value`` is to be kept instead of ``best``; NaN never is."""
        if math.isnan(value):
            return False
        if best is None:
            return True
        if value == best:
            return self.ties == "latest"
        return (value > best) == (self.mode == "max")


@dataclass(frozen=True)
class Run:
    """The folder of a run: checkpoints, ``history.jsonl``, ``curves.png``, the student's weights.

    Args:
        folder: Made when missing.
        every: Steps between checkpoints, besides those by time and at the end.
        minutes: Time between checkpoints; the first is written within a minute.
        keep: Number of checkpoints to keep.
        resume: Continue from the newest whole checkpoint, if it is of the same run; ``"anyway"``
            continues deliberately with other data, teacher, terms or optimizer; False refuses a
            folder that holds a run.
        tensorboard: Write event files too (extra ``potstill-core[tensorboard]``).
        asynchronous: Write checkpoints while training goes on, from a copy of all that they hold in
            the main process; the files are the same. An error of the disk is told with the next.
        curves: Draw ``curves.png`` at the end; seconds, which many short runs can do without.
    """

    folder: Path
    every: int | None = None
    minutes: float = 5.0
    keep: int = 2
    resume: bool | Literal["anyway"] = True
    tensorboard: bool = False
    asynchronous: bool = False
    curves: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.every is not None and self.every < 1:
            raise ConfigError(f"Run: every must be at least 1 step, got {self.every}")
        if self.keep < 1:
            raise ConfigError(f"Run: keep must be at least 1 checkpoint, got {self.keep}")
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"Run: folder must be a folder, got the file {self.folder}")
        if not self.resume and self.checkpoints.exists():
            raise ConfigError(
                f"Run: {self.folder} already holds a run; choose another folder, delete it, or "
                "pass resume=True"
            )

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.folder / "checkpoints"


@dataclass
class Plan:
    """The budget, divided into stages.

    Args:
        steps: Budget in steps, or None.
        seconds: Budget in seconds, or None. With both, whichever ends first.
        stages: The stages; one over everything when empty.

    Raises:
        ConfigError: No budget, or stages that contradict it.
    """

    steps: int | None
    seconds: float | None
    stages: Sequence[Stage] = ()
    ends: list[float] = field(init=False)

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("seconds", self.seconds)):
            if value is not None and not value > 0:
                raise ConfigError(f"fit: {name} must be positive, got {value}")
        self.stages = tuple(self.stages) or (Stage(share=1.0),)
        counted = [stage.steps for stage in self.stages if stage.steps is not None]
        if counted and len(counted) < len(self.stages):
            raise ConfigError("fit: stages must all have steps, or all have a share; got a mixture")
        if counted:
            if self.steps not in (None, sum(counted)):
                raise ConfigError(
                    f"fit: steps must be {sum(counted)}, the sum of the stages, got {self.steps}; "
                    "leave it out"
                )
            self.steps = sum(counted)
        if self.steps is None and self.seconds is None:
            raise ConfigError("fit: give a budget, steps= or seconds=; got neither")
        lengths: list[float] = list(counted)
        if not counted:
            shares = [stage.share or 0.0 for stage in self.stages]
            if abs(sum(shares) - 1) > 1e-6:
                raise ConfigError(f"fit: the shares of the stages must sum to 1, got {sum(shares)}")
            budget = self.seconds if self.steps is None else self.steps
            lengths = [share * (budget or 0.0) for share in shares]
        self.ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        if self.steps is not None:
            self.ends = [float(round(end)) for end in self.ends]

    def locate(self, step: int, elapsed: float) -> tuple[int, float]:
        """Stage number, and progress in it from 0 to 1; past the end the number of stages."""
        if self.seconds is not None and elapsed >= self.seconds:
            return len(self.stages), 1.0
        position = elapsed if self.steps is None else step
        start = 0.0
        for number, end in enumerate(self.ends):
            if position < end:
                return number, (position - start) / (end - start)
            start = end
        return len(self.stages), 1.0

    def fraction(self, step: int, elapsed: float) -> float:
        """Share of the budget that is used up."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        by_time = 0.0 if self.seconds is None else elapsed / self.seconds
        return min(max(by_steps, by_time), 1.0)
