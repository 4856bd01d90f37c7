"""All chapters, one after the other, with one live display."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column as Cell

from apps.tour.chapter import Chapter, Figures, Tell, measure
from potstill.core.measure.bench import BUSY, Measured
from potstill.core.measure.report import number

__all__ = ["ORDER", "Outcome", "exit_status", "last_line", "tour"]

ORDER = ("sr", "nerf", "graph", "mae", "acm")


@dataclass
class Outcome:
    """What became of a chapter: all figures, or why there are none.

    Attributes:
        name: The domain.
        chapter: What it told.
        costs: Of teacher and student.
        speedup: Of the student, interleaved with its teacher.
        others: CPU time that other programs took while both were timed, in cores.
        install: What to type when the domain is not installed.
        error: One line, when it failed.
        trace: The whole of it.
        seconds: Wall time.
    """

    name: str
    chapter: Chapter | None = None
    costs: tuple[Figures, Figures] | None = None
    speedup: Measured | None = None
    others: float = 0.0
    install: str = ""
    error: str = ""
    trace: str = ""
    seconds: float = 0.0


def tour(names: Sequence[str], out: Path, quick: bool, console: Console) -> Iterator[Outcome]:
    """Run the chapters of ``names``, one by one; a failure ends a chapter, never the tour."""
    with _display(names, console) as show:
        for name in names:
            outcome = Outcome(name)
            start = time.perf_counter()
            if find_spec(f"potstill.{name}") is None:
                outcome.install = f"pip install potstill-{name}"
            else:
                try:
                    _tell_all(outcome, out / name, quick, show)
                except Exception as error:  # whatever it is, the other domains go on
                    outcome.error = f"{type(error).__name__}: {error}".partition("\n")[0]
                    outcome.trace = traceback.format_exc()
            outcome.seconds = time.perf_counter() - start
            show(name, _words(outcome), 1.0)
            yield outcome


def _tell_all(outcome: Outcome, out: Path, quick: bool, show: Callable[..., None]) -> None:
    program: Any = importlib.import_module(f"apps.tour.{outcome.name}")
    outcome.chapter = program.run(_teller(outcome.name, show), out, quick)
    show(outcome.name, "timing", 0.95)
    *costs, outcome.speedup, outcome.others = measure(outcome.chapter, quick)
    outcome.costs = (costs[0], costs[1])


def _teller(name: str, show: Callable[..., None]) -> Tell:
    """Maps the progress of each part to its span of the domain's line; the rest is for timing."""
    reached = 0.0

    def tell(what: str, until: float) -> Callable[[Any, float], None]:
        nonlocal reached
        start, reached = reached, until
        show(name, what, 0.95 * start)

        def update(row: Any, share: float) -> None:
            loss = f"{what}, loss {row['loss']:.3g}"
            show(name, loss, 0.95 * (start + share * (until - start)))

        return update

    return tell


@contextmanager
def _display(names: Sequence[str], console: Console) -> Any:
    """One live line a domain; where nothing is live, a plain line when a domain is through."""
    rest = Cell(ratio=1, no_wrap=True, overflow="ellipsis")
    progress = Progress(
        TextColumn("{task.description}", style="bold"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", table_column=rest),
        console=console,
        expand=True,
        refresh_per_second=5,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {
        name: progress.add_task(name, total=1.0, start=False, what="waiting") for name in names
    }

    def show(name: str, what: str, share: float) -> None:
        task = tasks[name]
        if not progress.tasks[task].started:
            progress.start_task(task)
        progress.update(task, completed=share, what=what)
        if share == 1.0:
            progress.stop_task(task)
            if not console.is_terminal:
                console.print(f"{name}: {what}", markup=False, highlight=False, soft_wrap=True)

    with progress:
        yield show


def _words(outcome: Outcome) -> str:
    if outcome.install:
        return f"skipped, not installed: {outcome.install}"
    if outcome.chapter is None or outcome.speedup is None:
        return f"failed: {outcome.error}"
    told = outcome.chapter
    before, after = number(told.teacher.quality), number(told.student.quality)
    return (
        f"{told.measure} {before} -> {after} {told.unit}, {outcome.speedup.value:.1f}x as fast, "
        f"in {outcome.seconds:.0f} s"
    )


def last_line(outcomes: Sequence[Outcome]) -> str:
    """Whose times a busy machine may have spoilt."""
    spoilt = [f"{o.name} ({o.others:.1f} cores)" for o in outcomes if o.others > BUSY]
    if not spoilt:
        return "times: nothing else ran meanwhile"
    return f"times that other programs may have spoilt: {', '.join(spoilt)}; take them as ratios"


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """0 when all that is installed went through, 1 when one failed or nothing was there to run."""
    return int(any(o.error for o in outcomes) or all(o.install for o in outcomes))
