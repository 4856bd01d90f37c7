"""Run one benchmark: compare, race or collect, and judge."""

from __future__ import annotations

import gc
import math
import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.core.errors import ConfigError
from potstill.core.measure.bench.registry import Benchmark, Figure, Pair, Skip, Target

__all__ = ["BUSY", "Measured", "Result", "run"]

BUSY = 0.25
"""Cores that other processes may use while timed figures are taken, if these shall be judged."""

_LEAST_PAIRS = 5


@dataclass(frozen=True)
class Measured:
    """One measured figure.

    Attributes:
        value: Median of a race, mean of other figures.
        unit: Its unit.
        low: Lower end of the interval.
        high: Upper end of the interval.
        interval: Kind of interval.
        p20: 20th percentile of the samples.
        p50: Median of the samples.
        p80: 80th percentile of the samples.
        samples: Number of samples: pairs, or seeds.
        timed: True where a busy machine spoils it.
    """

    value: float
    unit: str
    low: float
    high: float
    interval: str
    p20: float
    p50: float
    p80: float
    samples: int
    timed: bool


@dataclass
class Result:
    """What came of one benchmark.

    Attributes:
        entry: The benchmark.
        status: "measured", "skipped" or "failed".
        reason: Why it was skipped or failed.
        figures: Measured figures by name.
        load: Load average when it began.
        others: Cores that other processes used meanwhile.
        provenance: As of :func:`potstill.core.measure.provenance.provenance`.
        trace: The traceback of a failure.
    """

    entry: Benchmark
    status: str = "measured"
    reason: str = ""
    figures: dict[str, Measured] = field(default_factory=dict)
    load: float = 0.0
    others: float = 0.0
    provenance: dict[str, str] = field(default_factory=dict)
    trace: str = ""

    def verdict(self, name: str, target: Target) -> str:
        """Say "met", "missed", or "not judged: why"."""
        if self.status != "measured":
            return f"not judged: {self.status}"
        figure = self.figures[name]
        if figure.timed and self.entry.clock == "wall" and self.others > BUSY:
            return f"not judged: busy ({self.others:.2f} cores)"
        return "met" if target.met(figure.value) else "missed"


def run(
    entry: Benchmark,
    *,
    quick: bool = False,
    pairs: int = 20,
    official: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Result:
    """Run a benchmark to its result; its own errors become a failed result.

    Args:
        entry: Benchmark to run.
        quick: Smoke run of two short pairs.
        pairs: Pairs of blocks of a full run.
        official: A checkout of a paper's code, for benchmarks that race against it.
        progress: Is told in words how far it is.
    """
    from potstill.core.measure.bench.counts import counted
    from potstill.core.measure.machine import Load
    from potstill.core.measure.provenance import commit_of, provenance
    from potstill.core.seed import seed_all

    reason = entry.missing(official)
    if reason:
        return Result(entry, "skipped", reason)
    result = Result(entry)
    gc.collect()
    with _threads(entry.threads):
        seed_all(entry.seed)
        load = Load()
        try:
            with load:
                progress("preparing")
                measurement = entry.measure(quick, official)
            if isinstance(measurement, Pair):
                measurement.check(measurement.ours(), measurement.baseline())
                with load:
                    seconds = _race(measurement, entry, quick, pairs, progress)
                result.figures = _pair_figures(measurement, entry.device, *seconds)
                if not quick:  # after the race, which it would disturb
                    result.figures |= _plain_figures(counted(measurement, entry.device))
                measurement = measurement.figures
            result.figures |= _plain_figures(measurement)
            _require_targets(entry, result.figures)
        except Skip as skip:
            return Result(entry, "skipped", str(skip))
        except Exception as error:
            text = str(error) or type(error).__name__
            return Result(entry, "failed", text, trace=traceback.format_exc())
        result.load, result.others = load.average, load.others
        theirs = official if entry.asks_for("official") else None
        result.provenance = provenance(
            seed=entry.seed,
            data=f"{theirs.name} {commit_of(theirs)}".strip() if theirs else "",
            device=entry.device,
        )
    return result


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _race(
    pair: Pair, entry: Benchmark, quick: bool, pairs: int, progress: Callable[[str], None]
) -> tuple[list[float], list[float]]:
    """Seconds per call of each side, pair by pair, in random order within a pair."""
    from potstill.core.measure.timing import calls_for, time_block

    pairs, least, block = (2, 2, 0.002) if quick else (pairs, _LEAST_PAIRS, 0.05)
    start = time.perf_counter()
    sides = (pair.ours, pair.baseline)
    progress("warming up")
    for side in sides:
        for _ in range(1 if quick else 2):
            side()
    calls = [calls_for(side, block, entry.clock) for side in sides]
    order = random.Random(entry.seed)
    seconds: tuple[list[float], list[float]] = ([], [])
    for done in range(pairs):
        if done >= least and time.perf_counter() - start > entry.budget:
            break
        progress(f"pair {done + 1} of {pairs}")
        for which in order.sample((0, 1), 2):
            taken = time_block(sides[which], calls[which], entry.clock)
            seconds[which].append(taken / calls[which])
    return seconds


def _pair_figures(
    pair: Pair, device: str, ours: Sequence[float], baseline: Sequence[float]
) -> dict[str, Measured]:
    ratios = [b / a for a, b in zip(ours, baseline, strict=True)]
    figures = {
        "ratio": _median(ratios, "x"),
        "ours": _median([1e3 * t for t in ours], "ms"),
        "baseline": _median([1e3 * t for t in baseline], "ms"),
    }
    if pair.work:
        figures["rate"] = _median([pair.work / t for t in ours], pair.unit)
    if pair.bytes or pair.flops:
        limit = _floor(pair, device)
        figures["floor"] = _median([t / limit for t in ours], "x floor")
    return figures


def _floor(pair: Pair, device: str) -> float:
    """Seconds that the machine needs at least: by memory or by arithmetic, whichever is more."""
    from potstill.core.measure.machine import copy_bandwidth, gemm_peak

    moved = pair.bytes / copy_bandwidth(device) if pair.bytes else 0.0
    computed = pair.flops / gemm_peak(device) if pair.flops else 0.0
    return max(moved, computed)


def _median(values: Sequence[float], unit: str) -> Measured:
    """Median with the bootstrap 95 % interval of the median (2,000 resamples, fixed seed)."""
    import numpy as np

    samples = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).choice(samples, (2000, samples.size))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    p20, p50, p80 = (float(q) for q in np.quantile(samples, [0.2, 0.5, 0.8]))
    interval = "bootstrap 95 %"
    return Measured(
        p50, unit, float(low), float(high), interval, p20, p50, p80, samples.size, timed=True
    )


def _plain_figures(figures: Mapping[str, Figure]) -> dict[str, Measured]:
    import numpy as np

    measured = {}
    for name, figure in figures.items():
        samples = np.atleast_1d(np.asarray(figure.value, dtype=np.float64))
        if samples.size == 0 or not np.isfinite(samples).all():
            raise ConfigError(f"Figure: {name} must be finite numbers, got {figure.value}")
        p20, p50, p80 = (float(q) for q in np.quantile(samples, [0.2, 0.5, 0.8]))
        measured[name] = Measured(
            float(samples.mean()),
            figure.unit,
            float(samples.min()),
            float(samples.max()),
            f"range of {samples.size}" if samples.size > 1 else "",
            p20,
            p50,
            p80,
            samples.size,
            figure.timed,
        )
    return measured


def _require_targets(entry: Benchmark, figures: Mapping[str, Any]) -> None:
    for name, target in entry.targets.items():
        if name not in figures:
            raise ConfigError(
                f"benchmark: targets must name a measured figure, got {name!r}; known: "
                f"{', '.join(figures) or 'none'}"
            )
        if not math.isfinite(target.value):
            raise ConfigError(f"benchmark: the target of {name!r} must be finite, got {target}")
