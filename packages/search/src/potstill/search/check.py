"""How well scores rank students: Kendall's tau, its interval, and what the choice costs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from potstill.core import Column, ConfigError, DataError, Report, nearest, reading

__all__ = ["Agreement", "agreement", "agreement_report", "read_table"]

FEW = 10  # truths below which an interval says nothing
_LARGEST = 1 << 26  # bytes of a table
_QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Agreement:
    """How well a score ranks what was measured.

    Attributes:
        name: Name of the score.
        tau: Kendall's tau-b with the truth; NaN where the score is constant.
        low: Lower end of its bootstrap 95 % interval over candidates.
        high: Upper end.
        regret: Truth of the best candidate less that of the one with the highest score.
        regrets: The same among candidates that cost at most the 25, 50 and 75 % quantile; empty
            without costs.
        count: Number of candidates with a finite score.
    """

    name: str
    tau: float
    low: float
    high: float
    regret: float
    regrets: tuple[float, ...]
    count: int

    @property
    def few(self) -> bool:
        """Whether the interval is of too few candidates to say anything."""
        return self.count < FEW


def agreement(
    scores: Mapping[str, Sequence[float]],
    truth: Sequence[float],
    *,
    cost: Sequence[float] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Agreement]:
    """Compare scores with accuracies that were measured, best first.

    Without any relation tau has mean 0 and the deviation ``sqrt(2 (2n + 5) / (9 n (n - 1)))``: 0.13
    for 30 candidates.

    Args:
        scores: By name, a value for each candidate; candidates with a value that is not finite are
            left out of that score's row, and so are truths that are not.
        truth: Accuracy of each.
        cost: Cost of each, for the regret under a budget.
        seed: Seed of the bootstrap.
        resamples: Bootstrap samples.

    Raises:
        ConfigError: Scores of another length than the truth.

    Example:
        >>> found = agreement({"size": [1, 2, 3], "depth": [1, 1, 0]}, [60, 65, 70])
        >>> [(row.name, round(row.tau, 3), row.regret) for row in found]
        [('size', 1.0, 0.0), ('depth', -0.816, 10.0)]
    """
    rows = []
    for name, values in scores.items():
        if len(values) != len(truth):
            raise ConfigError(
                f"agreement: {name} must have {len(truth)} values like truth, got {len(values)}"
            )
        s, y = np.asarray(values, float), np.asarray(truth, float)
        kept = np.isfinite(s) & np.isfinite(y)
        c = None if cost is None else np.asarray(cost, float)[kept]
        rows.append(_agree(name, s[kept], y[kept], c, seed, resamples))
    return sorted(rows, key=lambda row: -row.tau if row.tau == row.tau else math.inf)


def _agree(name: str, s: Any, y: Any, cost: Any, seed: int, resamples: int) -> Agreement:
    if len(s) < 2:
        return Agreement(name, math.nan, math.nan, math.nan, math.nan, (), len(s))
    draws = np.random.default_rng(seed).integers(len(s), size=(resamples, len(s)))
    taus = np.array([_tau(s[rows], y[rows]) for rows in draws])
    taus = taus[np.isfinite(taus)]
    low, high = np.quantile(taus, (0.025, 0.975)) if len(taus) else (math.nan, math.nan)
    budgets = () if cost is None else np.quantile(cost, _QUANTILES)
    regrets = tuple(_regret(s[cost <= bound], y[cost <= bound]) for bound in budgets)
    return Agreement(name, _tau(s, y), float(low), float(high), _regret(s, y), regrets, len(s))


def _tau(s: Any, y: Any) -> float:
    if np.ptp(s) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(kendalltau(s, y).statistic)


def _regret(s: Any, y: Any) -> float:
    return float(y.max() - y[s.argmax()])


def agreement_report(rows: Sequence[Agreement], title: str, **about: Any) -> Report:
    """A table of agreements, with few candidates marked."""
    points = Column("points", best="min")
    columns = {"tau": Column(best="max"), "from": Column(), "to": Column(), "regret": points}
    report = Report(title, columns=columns, label="score", **about)
    for row in rows:
        values: dict[str, Any] = {"tau": row.tau, "from": row.low, "to": row.high}
        values |= {"regret": row.regret}
        for share, regret in zip(_QUANTILES, row.regrets, strict=False):
            values[f"regret at {share:.0%}"] = regret
        report.add(row.name, **values, candidates=f"{row.count}, too few" * row.few or row.count)
    return report


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a table: a JSON list of mappings, or an ``.npz`` with ``values`` and ``columns``.

    Entries of a nested ``arch`` become columns.

    Raises:
        DataError: No such file, or something else in it.
    """
    path = Path(path)
    with reading(path, "a table: a JSON list of rows, or .npz with values and columns"):
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                names = [str(name) for name in arrays["columns"]]
                values = arrays["values"]
            return [dict(zip(names, map(float, row), strict=True)) for row in values]
        rows = json.loads(path.read_text(encoding="utf-8"))
        flat = [{**row, **(a if isinstance(a := row.get("arch"), dict) else {})} for row in rows]
        if not flat:
            raise ValueError("no rows")
    return flat


def column(rows: Sequence[Mapping[str, Any]], name: str, path: Path | str) -> list[float]:
    """The numbers of a column; NaN where a row has none.

    Raises:
        DataError: No row has it, or it holds something else.
    """
    if not any(name in row for row in rows):
        raise DataError(f"check: {path} has no column {name!r}; {nearest(name, rows[0])}")
    values = [row.get(name) for row in rows]
    if not all(value is None or isinstance(value, int | float) for value in values):
        raise DataError(f"check: column {name!r} of {path} must hold numbers, got {values[0]!r}")
    return [math.nan if value is None else float(value) for value in values]
