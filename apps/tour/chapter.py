"""What every domain tells: two models, a piece of work that both can do, and a part of the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from potstill.core import count_macs, count_parameters
from potstill.core.measure.bench import Benchmark, Measured, Pair, run

__all__ = ["Chapter", "Figures", "Program", "Side", "Tell", "forward", "measure"]

Tell = Callable[[str, float], Callable[[Any, float], None]]
"""``tell(what, until)`` says what goes on, up to which share of the chapter; its result is what
`potstill.core.fit` takes as ``progress``."""


@dataclass(frozen=True)
class Side:
    """A trained model, how good it is, and one piece of its work.

    Attributes:
        name: How it is called in the table.
        model: For its parameters.
        quality: In the chapter's measure.
        call: Does the work.
        inputs: Its arguments.
    """

    name: str
    model: nn.Module
    quality: float
    call: Callable[..., Any]
    inputs: tuple[Any, ...]

    @torch.no_grad()
    def __call__(self) -> Any:
        return self.call(*self.inputs)


@dataclass(frozen=True)
class Chapter:
    """What a domain hands back.

    Attributes:
        title: Heading on the page.
        teacher: The large model.
        student: What it became.
        measure: What quality is; more is better.
        unit: Its unit.
        work: What one call of a side does, such as "1 node".
        command: What does the same with a reader's own data.
        html: What is to be seen, from `apps.tour.widgets`.
        roles: What the two sides are to each other.
    """

    title: str
    teacher: Side
    student: Side
    measure: str
    unit: str
    work: str
    command: str
    html: str
    roles: tuple[str, str] = ("teacher", "student")


class Program(Protocol):
    """A module of a domain: one function, the same for all of them."""

    def run(self, tell: Tell, out: Path, quick: bool) -> Chapter:
        """Distil, keep teacher and student below ``out``, and tell about it."""
        ...


@dataclass(frozen=True)
class Figures:
    """What a side costs.

    Attributes:
        parameters: Their number.
        macs: Multiply-adds of the work.
        milliseconds: Median time of the work.
        mebibytes: What the work holds at its highest, on top of what was held before; NaN where it
            could not be seen.
    """

    parameters: int
    macs: int
    milliseconds: float
    mebibytes: float


def forward(model: nn.Module, *inputs: Tensor) -> Any:
    """The plain piece of work: one call of a model."""
    return model(*inputs)


def measure(chapter: Chapter, quick: bool) -> tuple[Figures, Figures, Measured, float]:
    """What teacher and student cost, how many times faster the student is, and what disturbed.

    Both are timed by the benchmark runner, `potstill.core.measure.bench`: interleaved, in random
    order within a pair, so that both see the same machine.

    Raises:
        RuntimeError: A side cannot do its work.
    """
    pair = Pair(ours=chapter.student, baseline=chapter.teacher, check=lambda ours, theirs: None)
    race = run(
        Benchmark("tour", chapter.title, lambda: pair, {}, 4.0, (), "cpu", None, "wall", 0),
        quick=quick,
        pairs=15,
    )
    if race.status != "measured":
        raise RuntimeError(f"the race of teacher and student {race.status}: {race.reason}")
    teacher, student = (
        Figures(
            count_parameters(side.model),
            count_macs(side),
            race.figures[time].value,
            race.figures[memory].value if memory in race.figures else math.nan,
        )
        for side, time, memory in (
            (chapter.teacher, "baseline", "peak, baseline"),
            (chapter.student, "ours", "peak"),
        )
    )
    return teacher, student, race.figures["ratio"], race.others
