"""The record of benchmarks: an append-only CSV per domain, and a page and plot drawn from it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from potstill.core.bench.run import Measured, Result
from potstill.core.errors import DataError
from potstill.core.files import atomic
from potstill.core.report.table import csv_text, markdown, number

__all__ = ["COLUMNS", "append", "page", "read"]

COLUMNS = [
    *("benchmark", "figure", "value", "unit", "low", "high", "interval", "p20", "p50", "p80"),
    *("samples", "timed", "target", "source", "verdict", "others", "date", "device", "cpu"),
    *("threads", "load", "python", "torch", "potstill", "commit", "seed", "data"),
]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a record; none when there is no file.

    Raises:
        DataError: The file has other columns, so it was not written by this version.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if list(reader.fieldnames or ()) != COLUMNS:
        raise DataError(
            f"bench: {path} must have the columns {','.join(COLUMNS)}, got "
            f"{','.join(reader.fieldnames or ())}; move it away or add the columns"
        )
    return rows


def append(path: Path, results: Iterable[Result]) -> list[dict[str, str]]:
    """Add a row for each measured figure, and give all rows; earlier ones stay as they are."""
    rows = read(path) + [
        _row(result, name, figure)
        for result in results
        if result.status == "measured"
        for name, figure in result.figures.items()
    ]
    with atomic(path) as temporary:
        temporary.write_text(csv_text(COLUMNS, rows), encoding="utf-8")
    return rows


def _row(result: Result, name: str, figure: Measured) -> dict[str, str]:
    target = result.entry.targets.get(name)
    row = {
        "benchmark": result.entry.name,
        "figure": name,
        "unit": figure.unit,
        "interval": figure.interval,
        "samples": str(figure.samples),
        "timed": str(int(figure.timed)),
        "target": "" if target is None else str(target),
        "source": "" if target is None else target.source,
        "verdict": "" if target is None else result.verdict(name, target),
        "others": f"{result.others:.2f}",
        **result.provenance,
        "load": f"{result.load:.2f}",
    }
    for key in ("value", "low", "high", "p20", "p50", "p80"):
        row[key] = f"{getattr(figure, key):.6g}"
    return row


def page(path: Path) -> list[Path]:
    """Draw ``<domain>.md`` and, when there are races, ``<domain>.png`` from ``<domain>.csv``.

    They show the newest row of each figure on each processor and device.
    """
    newest = {(r["benchmark"], r["figure"], r["cpu"], r["device"]): r for r in read(path)}
    rows = list(newest.values())
    races = [row for row in rows if row["figure"] == "ratio"]
    written = [path.with_suffix(".md")]
    lines = [
        f"# Benchmarks: {path.stem}",
        "",
        f"Drawn from `{path.name}` by `python -m benchmarks {path.stem}`: the newest figure of "
        "each kind on each machine. A ratio is baseline time over ours: above 1, ours is faster.",
        "",
        markdown(_HEADER, [_cells(row) for row in rows]),
        "",
    ]
    if races:
        written.append(path.with_suffix(".png"))
        _plot(races, path.stem, written[-1])
        lines += [f"![ratios with their intervals]({path.stem}.png)", ""]
    with atomic(written[0]) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return written


_HEADER = ["benchmark", "figure", "value", "interval", "target", "verdict", "machine", "when"]


def _cells(row: dict[str, str]) -> list[str]:
    value, low, high = (number(float(row[key])) for key in ("value", "low", "high"))
    machine = row["device"] if row["device"] != "cpu" else row["cpu"]
    return [
        row["benchmark"],
        row["figure"],
        f"{value} {row['unit']}".strip(),
        f"{low} to {high} ({row['interval']})" if row["interval"] else "",
        f"{row['target']} ({row['source']})" if row["target"] else "",
        row["verdict"],
        f"{machine}, {row['threads']} threads, torch {row['torch']}",
        f"{row['date'][:10]} {row['commit']}",
    ]


def _plot(rows: list[dict[str, str]], domain: str, path: Path) -> None:
    """Ratios as dots with intervals on a logarithmic axis, the line of equality, and targets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(8, 1.2 + 0.42 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, row in enumerate(reversed(rows)):
        value, low, high = (float(row[key]) for key in ("value", "low", "high"))
        axes.plot([low, high], [y, y], color="#1f6feb", linewidth=6, alpha=0.3)
        axes.plot(value, y, "o", color="#1f6feb")
        axes.annotate(
            f"{number(value, 3)}x",
            (value, y),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        if row["target"]:
            axes.plot(float(row["target"].split()[1]), y, "|", color="#c2410c", markersize=16)
    axes.axvline(1, color="#57606a", linewidth=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.8), max(high, 1.3) * 1.05)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.set_yticks(range(len(rows)), [row["benchmark"] for row in reversed(rows)])
    axes.set_xlabel("times faster than the baseline (bar: 95 % interval, red tick: target)")
    axes.set_title(f"{domain}: ours against the baseline", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    with atomic(path) as temporary:
        figure.savefig(temporary)
