"""What a run leaves behind for people: rows in memory and on disk, a live line, and curves."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from potstill.core.engine.plan import Run
from potstill.core.errors import CheckpointError, ConfigError, reading
from potstill.core.files import atomic, writing

__all__ = ["History", "Show", "plot_curves"]

Row = dict[str, float]

_INTERVAL = 10.0  # seconds between plain lines


class History:
    """The rows of a run; also in ``history.jsonl`` and TensorBoard where there is a folder.

    Args:
        run: The folder, or None to keep rows in memory only.
        rows: How many rows of an interrupted run are still valid.
    """

    def __init__(self, run: Run | None, rows: int = 0) -> None:
        self.rows: list[Row] = []
        self._file: TextIO | None = None
        self._board: Any = None
        if run is None:
            return
        path = run.folder / "history.jsonl"
        lines: list[str] = []
        if rows:
            with reading(path, "rows of text", CheckpointError):
                lines = path.read_text().splitlines()[:rows] if path.exists() else []
            if len(lines) < rows:
                raise CheckpointError(
                    f"fit: {path} has {len(lines)} rows, the checkpoint knows {rows}; restore the "
                    "file, or start in another folder"
                )
        with reading(path, "a row of JSON on each line", CheckpointError):
            self.rows = [json.loads(line) for line in lines]
        with atomic(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))
        self._path = path
        self._file = path.open("a")
        if run.tensorboard:
            self._board = _open_board(run.folder)

    def append(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        if self._file is not None:
            with writing(self._path):
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(row["step"]))

    def sync(self) -> None:
        """Bring all rows to the disk: a checkpoint counts on them."""
        if self._file is not None:
            with writing(self._path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _open_board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "Run: tensorboard=True needs TensorBoard; pip install 'potstill-core[tensorboard]'"
        ) from error
    return SummaryWriter(folder / "tensorboard")


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
        if sys.stderr.isatty():
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


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw every column of ``rows`` that varies over the steps, one panel each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if name not in ("step", "stage", "seconds")]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for name, panel in zip(names, panels, strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        steps, values = zip(*points, strict=True)
        panel.plot(steps, values, linewidth=1.2, marker="." if len(points) < 30 else "")
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        if min(values) > 0 and max(values) > 50 * min(values):
            panel.set_yscale("log")
    for panel in list(panels):
        panel.set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
