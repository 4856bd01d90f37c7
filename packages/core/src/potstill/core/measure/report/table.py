"""Tables and numbers as text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["csv_text", "markdown", "number", "print_table"]


def number(value: float, digits: int = 4) -> str:
    """A number to ``digits`` significant digits; what is before the point is kept whole.

    Example:
        >>> [number(v) for v in (0.001234567, 82.4449, 90.0, 122620.2, 7)]
        ['0.001235', '82.44', '90.00', '122,620', '7']
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e9:
        before = len(str(int(abs(value)))) if abs(value) >= 1 else 0
        if before >= digits or isinstance(value, int):
            return f"{value:,.0f}"
        return f"{value:,.{digits - before}f}" if before else f"{value:.{digits}g}"
    return f"{value:.{digits}g}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A Markdown table; columns are padded so that the source is readable too.

    Example:
        >>> print(markdown(["a", "b"], [["1", "x|y"]]))
        | a | b    |
        |---|------|
        | 1 | x\|y |
    """
    cells = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in r] for r in rows]
    lines = [list(header), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])


def csv_text(header: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV with Unix line ends; keys that are absent stay empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def print_table(table: Table, console: Console) -> None:
    """Print a table; where it is wider than the console, each row as a heading and its cells."""
    from rich.measure import Measurement
    from rich.padding import Padding
    from rich.text import Text

    wide = console.options.update(max_width=10_000)
    if Measurement.get(console, wide, table).maximum <= console.width:
        console.print(table)
        return

    def text(cell: object) -> Text:
        return cell if isinstance(cell, Text) else Text.from_markup(str(cell))

    first, *others = table.columns
    if table.title:
        console.print(text(table.title), style="italic")
    cells = [list(column.cells) for column in others]
    for i, label in enumerate(first.cells):
        console.print(text(label), style="bold", soft_wrap=True)
        said = [
            Text.assemble((text(column.header).plain, "dim"), " ", text(column_cells[i]))
            for column, column_cells in zip(others, cells, strict=True)
            if text(column_cells[i]).plain
        ]
        console.print(Padding(Text(", ").join(said), (0, 0, 0, 2)))
    if table.caption:
        console.print(text(table.caption), style="dim")
