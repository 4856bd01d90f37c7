"""Times that may be compared: taken in turns, so that a disturbance hits all sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

from potstill.core import Timing
from potstill.core.measure import calls_for, time_block

__all__ = ["Ratio", "in_turns", "ratio"]

Name = TypeVar("Name")


class Ratio(NamedTuple):
    """One time over another.

    Attributes:
        median: Median over the rounds.
        low: The 20th percentile.
        high: The 80th percentile.
    """

    median: float
    low: float
    high: float


def in_turns(
    calls: Mapping[Name, Callable[[], object]],
    rounds: int = 7,
    seconds: float = 0.05,
    within: Callable[[Name], AbstractContextManager[object]] = lambda name: nullcontext(),
) -> dict[Name, Timing]:
    """Time several calls, one block of each a round.

    Args:
        calls: Functions to time, by name.
        rounds: Rounds; as many blocks of each.
        seconds: Least duration of a block.
        within: Context in which the call of a name runs, for what shall not be timed.

    Returns:
        Seconds per call, one value a round.
    """
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    counts: dict[Name, int] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            with within(name):
                if name not in counts:
                    counts[name] = calls_for(call, seconds)
                taken[name].append(time_block(call, counts[name]) / counts[name])
    return {name: Timing(tuple(seconds), 1) for name, seconds in taken.items()}


def ratio(mine: Timing, other: Timing) -> Ratio:
    """Time of one over that of the other, round by round.

    Example:
        >>> ratio(Timing((1.0, 4.0), 1), Timing((2.0, 8.0), 1))  # the second round was disturbed
        Ratio(median=0.5, low=0.5, high=0.5)
    """
    pairs = zip(mine.seconds, other.seconds, strict=True)
    found = Timing(tuple(a / b for a, b in pairs), 1)
    return Ratio(found.median, found.p20, found.p80)
