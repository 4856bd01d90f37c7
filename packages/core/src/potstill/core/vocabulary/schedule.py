"""Schedules: weights as functions of the step, learning rates as functions of progress.

A weight schedule maps a step (0, 1, 2, ...) to a weight; a learning-rate schedule maps progress
(0 at the start, 1 at the end of the budget, be it steps or seconds) to a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from potstill.core.errors import ConfigError

__all__ = [
    "Schedule", "Weight", "after", "before", "constant", "cosine", "decay", "delayed", "linear",
    "ramp",
]  # fmt: skip

Weight = float | Callable[[int], float]
"""A weight of a term: a number, or a function of the step."""

Schedule = Callable[[float], float]
"""A factor of the learning rate as a function of progress in [0, 1]."""


def after(start: int, weight: float) -> Callable[[int], float]:
    """Zero before step ``start``, then ``weight``.

    Example:
        >>> [after(2, 0.5)(step) for step in range(4)]
        [0.0, 0.0, 0.5, 0.5]
    """
    return partial(_between, weight, start, math.inf)


def before(end: int, weight: float) -> Callable[[int], float]:
    """``weight`` before step ``end``, then zero."""
    return partial(_between, weight, -math.inf, end)


def decay(weight: float, rate: float) -> Callable[[int], float]:
    """``weight * rate ** step``: exponential decay, half-life ``log(1/2) / log(rate)`` steps."""
    if not 0 < rate <= 1:
        raise ConfigError(f"decay: rate must be in (0, 1], got {rate}")
    return partial(_decayed, weight, rate)


def ramp(steps: int, weight: float, start: int = 0) -> Callable[[int], float]:
    """Linear from zero at step ``start`` to ``weight`` at ``start + steps``, then constant."""
    if steps < 1:
        raise ConfigError(f"ramp: steps must be at least 1, got {steps}")
    return partial(_ramped, weight, start, steps)


def delayed(steps: int, delay: float = 0.5, warmup: float = 0.1) -> Callable[[int], float]:
    """Zero for a share ``delay`` of the training, then rising to 1 over a share ``warmup``.

    Args:
        steps: Length of the whole training.
        delay: Share without the term.
        warmup: Share in which the weight rises.

    Raises:
        ConfigError: Shares that are negative or together exceed 1.

    Example:
        >>> [delayed(10, 0.5, 0.2)(step) for step in (0, 5, 6, 7)]
        [0.0, 0.0, 0.5, 1.0]
    """
    if delay < 0 or warmup < 0 or delay + warmup > 1:
        raise ConfigError(
            f"delayed: delay and warmup must be shares that sum to at most 1, got {delay} and "
            f"{warmup}"
        )
    return ramp(max(1, round(warmup * steps)), 1.0, start=round(delay * steps))


# Functions of the module and partials of them, since a distiller that holds one can be pickled.
def _between(weight: float, start: float, end: float, step: int) -> float:
    return weight if start <= step < end else 0.0


def _decayed(weight: float, rate: float, step: int) -> float:
    return weight * rate**step


def _ramped(weight: float, start: int, steps: int, step: int) -> float:
    return weight * min(max((step - start) / steps, 0.0), 1.0)


def constant() -> Schedule:
    """The learning rate as given."""
    return _whole


def _whole(progress: float) -> float:
    return 1.0


def linear(final: float = 0.0, warmup: float = 0.0) -> Schedule:
    """Linear warm-up over a share ``warmup`` of the budget, then linear to ``final``."""
    return _with_warmup("linear", warmup, partial(_line, final))


def cosine(final: float = 0.0, warmup: float = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine down to ``final``.

    Source: Loshchilov and Hutter, SGDR, ICLR 2017, Eq. (5), one cycle.

    Example:
        >>> [round(cosine()(p), 3) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    return _with_warmup("cosine", warmup, partial(_half_wave, final))


def _line(final: float, progress: float) -> float:
    return 1.0 + (final - 1.0) * progress


def _half_wave(final: float, progress: float) -> float:
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _with_warmup(name: str, warmup: float, main: Schedule) -> Schedule:
    if not 0 <= warmup < 1:
        raise ConfigError(f"{name}: warmup must be a share of the budget in [0, 1), got {warmup}")
    return partial(_warmed, warmup, main)


def _warmed(warmup: float, main: Schedule, progress: float) -> float:
    if progress < warmup:
        # A factor of exactly zero would waste the first step, so half a hair above it.
        return max(progress / warmup, 1e-3)
    return main(min((progress - warmup) / (1 - warmup), 1.0))
