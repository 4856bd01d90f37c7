"""What commands show: lines, tables of figures, and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["progress", "say", "table"]


def say(text: str) -> None:
    """Print a line as it is: brackets are not markup, and paths are not broken."""
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def table(title: str, values: Mapping[str, Any]) -> None:
    """Print names and values as a table of two columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = Table(title=title, show_header=False)
    for name, value in values.items():
        rows.add_row(name, Text(f"{value:.4g}" if isinstance(value, float) else str(value)))
    Console().print(rows)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A line of progress on a terminal; gives a function of (done, total)."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
