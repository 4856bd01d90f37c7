"""The record of benchmarks: an append-only CSV for each domain."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from potstill.core.errors import DataError, reading
from potstill.core.files import atomic
from potstill.core.measure.bench.run import Measured, Result
from potstill.core.measure.report.table import csv_text

__all__ = ["COLUMNS", "append", "newest", "read"]

COLUMNS = [
    *("benchmark", "figure", "value", "unit", "low", "high", "interval", "p20", "p50", "p80"),
    *("samples", "timed", "target", "source", "verdict", "others", "date", "device", "cpu"),
    *("threads", "load", "python", "torch", "potstill", "commit", "seed", "data"),
]
_NUMBERS = ("value", "low", "high", "p20", "p50", "p80", "others", "load")


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a record; none when there is no file.

    Raises:
        DataError: The file has other columns, so it was not written by this version, or is damaged.
    """
    if not path.exists():
        return []
    with reading(path, "a record of benchmarks"), path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    if columns != COLUMNS:
        raise DataError(
            f"bench: {path} must have the columns {','.join(COLUMNS)}, got "
            f"{','.join(columns)}; move it away or add the columns"
        )
    with reading(path, "a record of benchmarks"):
        for number, row in enumerate(rows, start=1):
            if None in row or None in row.values():
                raise DataError(f"row {number} must have {len(COLUMNS)} cells, got another number")
            for name in _NUMBERS:
                float(row[name])
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


def newest(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The newest row of each figure on each processor and device, by benchmark."""
    found = {(r["benchmark"], r["figure"], r["cpu"], r["device"]): r for r in rows}
    order = {name: i for i, name in enumerate(dict.fromkeys(key[0] for key in found))}
    return sorted(found.values(), key=lambda row: order[row["benchmark"]])
