"""The page of a record: what was promised, how far each race was won, and every figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from potstill.core.files import atomic
from potstill.core.measure.bench.results import newest, read
from potstill.core.measure.bench.run import BUSY
from potstill.core.measure.report.image import draw_svg
from potstill.core.measure.report.page import Section, page, table_html
from potstill.core.measure.report.table import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "sections"]

Row = dict[str, str]


def draw(path: Path) -> Path:
    """Write ``<domain>.html`` beside ``<domain>.csv``: one page that needs nothing else."""
    target = path.with_suffix(".html")
    text = page(f"Benchmarks: {path.stem}", sections(read(path)), summary=_summary(path.stem))
    with atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def _summary(domain: str) -> str:
    return (
        f"Drawn from benchmarks/results/{domain}.csv: the newest figure of each kind on each "
        f"machine, printed by: hatch run bench {domain} <benchmark>."
    )


def sections(rows: list[Row]) -> list[Section]:
    """Targets, then races and figures on each machine, as parts of a page."""
    rows = newest(rows)
    parts = [Section("Promised", _targets([row for row in rows if row["target"]]))]
    for machine in dict.fromkeys(map(_machine, rows)):
        here = [row for row in rows if _machine(row) == machine]
        races = [row for row in here if row["figure"] == "ratio"]
        parts.append(Section(f"On {machine}", (_races(races) if races else "") + _figures(here)))
    return [part for part in parts if part.html]


def _targets(rows: list[Row]) -> str:
    if not rows:
        return ""
    cells = [
        [row["benchmark"], row["figure"], _value(row), row["target"], row["verdict"], row["source"]]
        for row in rows
    ]
    header = ["benchmark", "figure", "measured", "target", "verdict", "promised in"]
    missed = [i for i, row in enumerate(rows) if row["verdict"] == "missed"]
    return table_html(
        header,
        cells,
        numeric=[False, False, True, True, False, False],
        best=frozenset((i, j) for i in missed for j in (2, 4)),  # bold: what was not reached
    )


def _races(rows: list[Row]) -> str:
    """Ratios as dots with intervals on a logarithmic axis, the line of equality, and targets."""

    def plot(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        for y, row in enumerate(reversed(rows)):
            value, low, high = (float(row[key]) for key in ("value", "low", "high"))
            axes.plot([low, high], [y, y], color="#3b82f6", linewidth=6, alpha=0.35)
            axes.plot(value, y, "o", color="#3b82f6")
            label, offset = f"{number(value, 3)}x", (0, 6)
            axes.annotate(label, (value, y), offset, textcoords="offset points", ha="center")
            if row["target"]:
                axes.plot(float(row["target"].split()[1]), y, "|", color="#f97316", markersize=16)
        axes.axvline(1, color="#8b949e", linewidth=1)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.8), max(high, 1.3) * 1.05)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(-0.6, len(rows) - 0.3)
        axes.set_yticks(range(len(rows)), [row["benchmark"] for row in reversed(rows)])
        axes.set_xlabel("times faster than the baseline")
        axes.grid(visible=False, axis="y")

    svg = draw_svg(plot, (8, 1.2 + 0.42 * len(rows)))
    note = "Baseline time over ours, interleaved. Bar: 95 % interval of the median; tick: target."
    label = "How many times faster than the baseline each benchmark is"
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f"<figure>{svg}<figcaption>{note}</figcaption></figure>"


def _figures(rows: list[Row]) -> str:
    cells = []
    for row in rows:
        interval = ""
        if row["interval"]:
            low, high = (number(float(row[key])) for key in ("low", "high"))
            interval = f"{low} to {high} ({row['interval']}, n={row['samples']})"
        busy = row["timed"] == "1" and float(row["others"]) > BUSY
        note = f"{row['date'][:10]} {row['commit']}" + ", busy machine" * busy
        cells.append(
            [
                row["benchmark"],
                row["figure"],
                _value(row),
                interval,
                row["threads"],
                row["seed"],
                note,
            ]
        )
    header = ["benchmark", "figure", "value", "interval", "threads", "seed", "when, commit"]
    return table_html(header, cells, numeric=[name == "value" for name in header])


def _machine(row: Row) -> str:
    device = row["device"] if row["device"] != "cpu" else row["cpu"]
    return f"{device}, torch {row['torch']}"


def _value(row: Row) -> str:
    return f"{number(float(row['value']))} {row['unit']}".strip()
