"""Seconds of a call: blocks that are long enough for the clock."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from potstill.core.errors import ConfigError

__all__ = ["Clock", "Timing", "calls_for", "latency", "time_block"]

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one value for each timed block.

    Attributes:
        seconds: Block time divided by its calls, in the order measured.
        calls: Calls in a block.
    """

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds)

    @property
    def p20(self) -> float:
        """The 20th percentile, seconds per call."""
        return self.quantile(0.2)

    @property
    def p80(self) -> float:
        """The 80th percentile, seconds per call."""
        return self.quantile(0.8)

    def quantile(self, share: float) -> float:
        """Linear interpolation between the order statistics, ``share`` in [0, 1]."""
        ordered = sorted(self.seconds)
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    def __str__(self) -> str:
        """Median and spread in milliseconds."""
        return f"{self.median * 1e3:.4g} ms ({self.p20 * 1e3:.4g} to {self.p80 * 1e3:.4g})"


def latency(
    fn: Callable[..., Any],
    *args: Any,
    blocks: int = 20,
    block_seconds: float = 0.05,
    warmup: int = 3,
    clock: Clock = "wall",
    **kwargs: Any,
) -> Timing:
    """Time ``fn(*args)``: warm-up, then blocks of calls that are long enough for the clock.

    CUDA is synchronised around each block when it is in use. Gradients and eval mode are the
    caller's business. To compare two implementations use ``potstill.core.bench`` instead: machines
    drift, and only interleaved pairs see the same drift.

    Args:
        fn: Function to time.
        *args: Its arguments.
        blocks: Number of timed blocks; the spread is over these.
        block_seconds: Least duration of a block in seconds; decides the calls in a block.
        warmup: Calls before anything is timed.
        clock: "wall", or "cpu" for the CPU time of this process (all threads added up), which other
            processes disturb less.
        **kwargs: Keyword arguments of ``fn``.

    Raises:
        ConfigError: ``blocks`` < 1, ``block_seconds`` <= 0, or an unknown clock.

    Example:
        >>> latency(sum, [1, 2, 3], blocks=3, block_seconds=0.001).median < 0.01
        True
    """
    if blocks < 1 or block_seconds <= 0:
        raise ConfigError(
            f"latency: blocks and block_seconds must be positive, got {blocks} and {block_seconds}"
        )
    call = functools.partial(fn, *args, **kwargs)
    for _ in range(warmup):
        call()
    calls = calls_for(call, block_seconds, clock)
    seconds = tuple(time_block(call, calls, clock) / calls for _ in range(blocks))
    return Timing(seconds, calls)


def time_block(call: Callable[[], Any], calls: int, clock: Clock = "wall") -> float:
    """Seconds that ``calls`` calls take together, with the garbage collector held still."""
    now = _now(clock)
    collecting = gc.isenabled()
    gc.disable()
    try:
        _synchronize()
        start = now()
        for _ in range(calls):
            call()
        _synchronize()
        return now() - start
    finally:
        if collecting:
            gc.enable()


def calls_for(call: Callable[[], Any], seconds: float, clock: Clock = "wall") -> int:
    """How many calls fill a block of ``seconds``."""
    calls = 1
    while True:
        taken = time_block(call, calls, clock)
        if taken >= seconds:
            return calls
        # At most tenfold at once: the first blocks are the least reliable ones.
        wanted = calls * seconds / max(taken, 1e-9)
        calls = max(calls + 1, min(10 * calls, int(1.05 * wanted) + 1))


def _now(clock: Clock) -> Callable[[], float]:
    if clock == "wall":
        return time.perf_counter
    if clock == "cpu":
        return time.process_time
    raise ConfigError(f"latency: clock must be 'wall' or 'cpu', got {clock!r}")


def _synchronize() -> None:
    if torch.cuda.is_initialized():  # asks, and does not start it
        torch.cuda.synchronize()
