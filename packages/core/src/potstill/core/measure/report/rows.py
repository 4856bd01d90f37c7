"""The report: rows of figures, and what is shown beside them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from potstill.core.errors import ConfigError, nearest
from potstill.core.files import atomic
from potstill.core.measure.provenance import provenance
from potstill.core.measure.report.image import Draw, data_uri, draw_png, draw_svg, figure_svg
from potstill.core.measure.report.page import Section, page, table_html
from potstill.core.measure.report.table import csv_text, markdown, number, print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["Column", "Report"]

Value = float | int | str | Sequence[float]


@dataclass(frozen=True)
class Column:
    """How a column is shown.

    Attributes:
        unit: Shown in the heading.
        best: Own figure that is set in bold: the largest ("max") or smallest ("min").
        digits: Significant digits.
    """

    unit: str = ""
    best: Literal["", "max", "min"] = ""
    digits: int = 4


@dataclass(frozen=True)
class _Row:
    name: str
    values: dict[str, Value]
    published: str


class Report:
    """Rows with provenance, shown as a table, written as CSV, Markdown and one HTML page.

    Args:
        title: Title of the report.
        summary: One or two sentences with the main figure.
        columns: Columns as they are shown, in order; others follow as they appear.
        label: Heading of the first column.
        seed: Seed, or text such as "0-4".
        data: Fingerprint or name of the data.
        device: As in :func:`potstill.core.measure.provenance.provenance`.

    Example:
        >>> report = Report("Speed", columns={"time": Column("ms", best="min")})
        >>> report.add("ours", time=1.25)
        >>> report.add("theirs", time=2.5, published="Someone 2023, Table 2")
        >>> print(report.markdown())
        | method             | time [ms] |
        |--------------------|-----------|
        | ours               | 1.250     |
        | theirs (published) | 2.500     |
        <BLANKLINE>
        Published figures: theirs, Someone 2023, Table 2.
    """

    def __init__(
        self,
        title: str,
        *,
        summary: str = "",
        columns: Mapping[str, Column] | None = None,
        label: str = "method",
        seed: int | str | None = None,
        data: str = "",
        device: str = "auto",
    ) -> None:
        self.title, self.summary, self.label = title, summary, label
        self.columns = dict(columns or {})
        self.provenance = provenance(data=data, device=device)
        self.provenance["seed"] = "" if seed is None else str(seed)
        self._rows: list[_Row] = []
        self._sections: list[Section] = []
        self._plots: list[tuple[str, Draw, tuple[float, float]]] = []

    def add(self, name: str, /, *, published: str = "", **values: Value) -> None:
        """Add a row.

        Args:
            name: Its label.
            published: The source, when these figures are someone else's and were not measured.
            **values: A number, a text, or a sequence of numbers, one for each seed, which is shown
                as mean and standard deviation.

        Raises:
            ConfigError: A sequence is empty.
        """
        for key, value in values.items():
            if getattr(value, "ndim", None) == 0:  # a scalar tensor or array
                values[key] = value = value.item()  # type: ignore[union-attr]
            if not isinstance(value, str | float | int) and len(value) == 0:
                raise ConfigError(f"Report.add: {key} must hold a value for each seed, got none")
            self.columns.setdefault(key, Column())
        self._rows.append(_Row(name, values, published))

    def text(self, text: str, title: str = "") -> None:
        """Add paragraphs, divided by empty lines."""
        paragraphs = (part.strip() for part in text.split("\n\n"))
        html = "\n".join(f"<p>{escape(part)}</p>" for part in paragraphs if part)
        self.html(html, title)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> None:
        """Add a table beside the main one; numbers are formatted and right-aligned."""
        cells = [[_shown(cell, Column()) for cell in row] for row in rows]
        numeric = [
            bool(rows) and all(not isinstance(row[j], str) for row in rows)
            for j in range(len(header))
        ]
        self.html(table_html(header, cells, numeric=numeric), title)

    def figure(self, figure: Figure, caption: str, title: str = "") -> None:
        """Add a finished matplotlib figure, on white paper in either colour scheme."""
        svg = _labelled(figure_svg(figure), caption)
        self.html(_figure(f'<div class="paper">{svg}</div>', caption), title)

    def plot(
        self, draw: Draw, caption: str, title: str = "", size: tuple[float, float] = (6.4, 3.6)
    ) -> None:
        """Add a plot made by ``draw(axes)`` in the colours of the page; ``save`` also writes a PNG.

        Leave the colours of text and axes alone: they follow the reader's light or dark scheme.
        """
        svg = _labelled(draw_svg(draw, size), caption)
        self.html(_figure(svg, caption), title)
        self._plots.append((title or caption, draw, size))

    def bars(self, column: str, caption: str = "", title: str = "") -> None:
        """Add a bar for each row that has ``column``, with its spread over seeds.

        Raises:
            ConfigError: No row has that column.
        """
        self._require(column)
        rows = [row for row in self._rows if column in row.values]

        def draw(axes: Axes) -> None:
            for y, row in enumerate(reversed(rows)):
                mean, spread, _ = _statistics(row.values[column])
                color = "#8b949e" if row.published else "#3b82f6"
                axes.barh(y, mean, xerr=spread or None, color=color, height=0.6, capsize=3,
                          ecolor="#8b949e")  # fmt: skip
                axes.annotate(
                    number(mean, self.columns[column].digits),
                    (mean + spread, y),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                )
            axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
            axes.margins(x=0.15)
            axes.grid(visible=False, axis="y")
            axes.set_xlabel(self._heading(column))

        self.plot(
            draw, caption or f"{column} of each {self.label}", title, (6.4, 1 + 0.45 * len(rows))
        )

    def scatter(
        self, x: str, y: str, caption: str = "", title: str = "", *, log: bool = False
    ) -> None:
        """Add a dot for each row that has both columns: what it costs against what it gives.

        Raises:
            ConfigError: No row has one of the columns.
        """
        self._require(x)
        self._require(y)
        rows = [row for row in self._rows if x in row.values and y in row.values]

        def draw(axes: Axes) -> None:
            # A legend, not labels at the dots: methods that are alike lie on top of each other.
            for index, row in enumerate(rows):
                (u, du, _), (v, dv, _) = _statistics(row.values[x]), _statistics(row.values[y])
                marker = "osD^vP"[index // 6 % 6]
                axes.errorbar(u, v, dv or None, du or None, marker, label=row.name, capsize=3)
            if log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter("{x:g}")
            axes.margins(x=0.15, y=0.15)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            axes.set_xlabel(self._heading(x))
            axes.set_ylabel(self._heading(y))

        self.plot(draw, caption or f"{y} against {x}", title)

    def images(
        self, images: Mapping[str, Any], title: str = "", caption: str = "", *, pixels: bool = False
    ) -> None:
        """Add pictures side by side with their names below.

        Args:
            images: ``{name: image}``, as :func:`data_uri` takes them.
            title: Heading.
            caption: Below all of them.
            pixels: Show enlarged pixels as squares.
        """
        mark = ' class="pixels"' if pixels else ""
        cells = "".join(
            _figure(f'<img{mark} src="{data_uri(image)}" alt="{escape(name)}">', name)
            for name, image in images.items()
        )
        note = f"<p>{escape(caption)}</p>" if caption else ""
        self.html(f'<div class="grid">{cells}</div>{note}', title)

    def html(self, fragment: str, title: str = "") -> None:
        """Add an HTML fragment as it is: its styles and scripts must be inline."""
        self._sections.append(Section(title, fragment))

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        header = [self.label, *map(self._heading, self.columns)]
        rows = []
        for row in self._rows:
            name = f"{row.name} (published)" if row.published else row.name
            rows.append([name, *(_shown(row.values.get(k), c) for k, c in self.columns.items())])
        return header, rows

    def _require(self, column: str) -> None:
        if not any(column in row.values for row in self._rows):
            raise ConfigError(
                f"Report: column must be in a row, got {column!r}; {nearest(column, self.columns)}"
            )

    def _heading(self, key: str) -> str:
        unit = self.columns[key].unit
        return f"{key} [{unit}]" if unit else key

    def _sources(self) -> str:
        sources = [f"{row.name}, {row.published}" for row in self._rows if row.published]
        return f"Published figures: {'; '.join(sources)}." if sources else ""

    def _best(self) -> frozenset[tuple[int, int]]:
        """Cells of the best own figure in each column that has one."""
        cells = set()
        for j, (key, column) in enumerate(self.columns.items(), start=1):
            own = {
                i: _statistics(row.values[key])[0]
                for i, row in enumerate(self._rows)
                if not row.published and not isinstance(row.values.get(key, ""), str)
            }
            if column.best and len(own) > 1:
                top = (max if column.best == "max" else min)(own.values())
                cells |= {(i, j) for i, value in own.items() if value == top}
        return frozenset(cells)

    def markdown(self) -> str:
        """The main table, with the sources of published figures below."""
        return "\n\n".join(filter(None, [markdown(*self._cells()), self._sources()]))

    def csv(self) -> str:
        """The main table with full precision: mean, deviation and count, and the provenance."""
        header, rows = [self.label], []
        for key in self.columns:
            header.append(key)
            if any(_statistics(row.values.get(key, ""))[2] > 1 for row in self._rows):
                header += [f"{key} std", f"{key} n"]
        for row in self._rows:
            cells: dict[str, object] = {self.label: row.name, "published": row.published}
            for key, value in row.values.items():
                mean, spread, count = _statistics(value)
                cells[key] = value if isinstance(value, str) else repr(mean)
                if f"{key} n" in header and count:
                    cells |= {f"{key} std": repr(spread), f"{key} n": count}
            rows.append(cells if row.published else cells | self.provenance)
        return csv_text([*header, "published", *self.provenance], rows)

    def page(self) -> str:
        """The whole report as one HTML page that needs nothing else."""
        sections = list(self._sections)
        if self._rows:
            header, rows = self._cells()
            published = frozenset(i for i, row in enumerate(self._rows) if row.published)
            table = table_html(
                header,
                rows,
                numeric=[False] + [self._numeric(key) for key in self.columns],
                best=self._best(),
                published=published,
            )
            sources = self._sources()
            sections.insert(0, Section("", table + (f"<p>{escape(sources)}</p>" * bool(sources))))
        return page(self.title, sections, summary=self.summary, provenance=self.provenance)

    def _numeric(self, key: str) -> bool:
        return not any(isinstance(row.values.get(key, 0), str) for row in self._rows)

    def show(self, console: Console | None = None) -> None:
        """Print the main table."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        header, rows = self._cells()
        # As `Text`, since a unit such as [dB] is otherwise read as markup and vanishes.
        sources = self._sources()
        table = Table(title=Text(self.title), caption=Text(sources) if sources else None)
        for name, key in zip(header, ["", *self.columns], strict=True):
            table.add_column(Text(name), justify="right" if key and self._numeric(key) else "left")
        best = self._best()
        for i, row in enumerate(rows):
            style = "italic dim" if self._rows[i].published else ""
            cells = (Text(c, "bold" if (i, j) in best else "") for j, c in enumerate(row))
            table.add_row(*cells, style=style)
        print_table(table, console or Console())

    def save(self, folder: str | Path) -> Path:
        """Write ``index.html``, ``report.md``, ``rows.csv``, ``provenance.json`` and plots as PNG.

        Returns:
            The page.
        """
        folder = Path(folder)
        lines = [f"# {self.title}", self.summary, self.markdown()]
        for index, (name, draw, size) in enumerate(self._plots, start=1):
            with atomic(folder / f"plot-{index}.png") as temporary:
                draw_png(draw, temporary, size)
            lines.append(f"![{name}](plot-{index}.png)")
        texts = {
            "report.md": "\n\n".join(filter(None, lines)) + "\n",
            "rows.csv": self.csv(),
            "provenance.json": json.dumps(self.provenance, indent=2) + "\n",
            "index.html": self.page(),
        }
        for name, text in texts.items():
            with atomic(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return folder / "index.html"


def _statistics(value: Value) -> tuple[float, float, int]:
    """Mean, standard deviation (n - 1) and count; texts count nothing."""
    if isinstance(value, str):
        return math.nan, 0.0, 0
    values = [float(value)] if isinstance(value, int | float) else [float(v) for v in value]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread, len(values)


def _shown(value: Any, column: Column) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return number(value, column.digits)
    mean, spread, count = _statistics(value)
    text = number(mean, column.digits)
    if count < 2:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {spread:,.{decimals}f}"


def _labelled(svg: str, caption: str) -> str:
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"
