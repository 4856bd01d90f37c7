"""What a run leaves behind for people: rows, a live line, and curves."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from potstill.core.engine.plan import Run
from potstill.core.engine.rows import Row, Rows
from potstill.core.files import atomic, writing

__all__ = ["History", "Row", "Show", "plot_curves"]

_INTERVAL = 10.0  # seconds between plain lines
_POINTS = 50_000  # of a curve; of longer ones every second, third and so on


class History:
    """The rows of a run, in ``history.jsonl`` where there is a folder.

    Args:
        run: The folder, or None to keep rows in memory only.
        rows: Number of rows of an interrupted run that are still valid.

    Attributes:
        rows: The rows so far; with a folder they are read back from it when they are asked for.

    Raises:
        CheckpointError: The file has lost rows.
    """

    def __init__(self, run: Run | None, rows: int = 0) -> None:
        self.rows: list[Row] | Rows = []
        self._file: IO[bytes] | None = None
        if run is None:
            return
        path = run.folder / "history.jsonl"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.rows = Rows(path, rows)
            self._file = path.open("r+b")

    @classmethod
    def elsewhere(cls) -> History:
        """Of a process that writes no files: what it keeps is in a temporary one."""
        history = cls(None)
        history.rows = Rows(None)
        return history

    def append(self, row: Row) -> None:
        """Add a row."""
        if isinstance(self.rows, list):
            self.rows.append(row)
            return
        with writing(self.rows.path or Path(tempfile.gettempdir(), "history.jsonl")):
            self.rows.written(row, self._file)

    def sync(self) -> None:
        """Bring all rows to the disk: a checkpoint counts on them."""
        if self._file is not None and isinstance(self.rows, Rows) and self.rows.path:
            with writing(self.rows.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the rows can be read as long as it is there."""
        if self._file is not None:
            with suppress(OSError):  # a row that the disk did not take: `append` has told it
                self._file.close()


class Show:
    """A live line with the terms on a terminal; a plain line now and then elsewhere.

    Args:
        progress: False for silence, True or a label for the line, or a function that gets each
            row and the share of the budget used.
    """

    def __init__(self, progress: bool | str | Callable[[Row, float], None]) -> None:
        self._callback = progress if callable(progress) else None
        self._label = progress if isinstance(progress, str) else "fit"
        self._bar: Any = None
        self._console: Any = None
        self._last = time.monotonic()
        if not progress or self._callback is not None:
            return
        from rich.console import Console

        self._console = Console(stderr=True)
        if sys.stderr.isatty() and not self._console.is_dumb_terminal:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task(self._label, total=1.0, terms="")
            self._bar.start()

    def update(self, row: Row, fraction: float) -> None:
        """Show ``row``."""
        if self._callback is not None:
            self._callback(row, fraction)
        elif self._bar is not None:
            self._bar.update(self._task, completed=fraction, terms=_terms(row))
        elif self._console is not None and time.monotonic() - self._last > _INTERVAL:
            self._last = time.monotonic()
            self._console.print(
                f"{self._label}: {fraction:4.0%} step {row['step']:.0f} {_terms(row)}",
                highlight=False,
                markup=False,
                soft_wrap=True,  # one line an update, however many terms
            )

    def close(self) -> None:
        """End the line."""
        if self._bar is not None:
            self._bar.stop()


def _bar(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # narrow terminals lose terms first
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[terms]}", style="dim", table_column=rest),
        console=console,
        expand=True,
        refresh_per_second=4,
    )


def _terms(row: Row) -> str:
    hidden = ("step", "stage", "seconds")
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in hidden)


def plot_curves(rows: Iterable[Row], path: Path) -> None:
    """Draw every column of ``rows`` that varies over the steps, one panel each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, tuple[array[float], array[float]]] = {}  # steps and values
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "stage", "seconds"):
                points = curves.setdefault(name, (array("d"), array("d")))
                points[0].append(row["step"])
                points[1].append(value)
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    wide, high = 4 * columns, 2.6 * lines
    figure = Figure(figsize=(wide, high))
    FigureCanvasAgg(figure)
    # Margins by hand, in inches: matplotlib would draw all of it again to find them.
    figure.subplots_adjust(0.8 / wide, 0.5 / high, 1 - 0.15 / wide, 1 - 0.3 / high, 0.3, 0.45)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for (name, points), panel in zip(curves.items(), panels, strict=False):
        sparse = max(len(points[0]) // _POINTS, 1)
        steps, values = (one[::sparse] for one in points)
        panel.plot(steps, values, linewidth=1.2, marker="." if len(steps) < 30 else "")
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        if min(values) > 0 and max(values) > 50 * min(values):
            panel.set_yscale("log")
    for panel in list(panels):
        panel.set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, pil_kwargs={"compress_level": 1})
