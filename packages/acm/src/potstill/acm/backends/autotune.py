"""Measure a few ways of doing the same thing once for each shape, and remember the fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

__all__ = ["Autotuner"]

Way = TypeVar("Way", bound=Hashable)


class Autotuner:
    """The fastest of several ways, by key, measured on the first call with that key.

    Args:
        rounds: Runs of each way, in turns; the fastest counts.
        skip: Errors that mean that a way cannot run on this device; it is not chosen.

    Example:
        >>> tuner = Autotuner()
        >>> tuner.choose("shape", {"slow": lambda: time.sleep(0.01), "fast": lambda: None})
        'fast'
        >>> tuner.known
        {'shape': 'fast'}
    """

    def __init__(self, rounds: int = 3, skip: tuple[type[Exception], ...] = ()) -> None:
        self.rounds, self.skip = rounds, skip
        self.known: dict[Hashable, Hashable] = {}

    def choose(
        self,
        key: Hashable,
        ways: Mapping[Way, Callable[[], object]],
        device: torch.device | None = None,
    ) -> Way:
        """The fastest of ``ways`` for ``key``: from memory, else measured now.

        Args:
            key: Shapes, dtype, device, threads, and whatever else the choice depends on.
            ways: Callables without side effects.
            device: Waited for after each run, when it is asynchronous.

        Raises:
            Exception: One of ``skip``, the last one, where no way can run.
        """
        if key not in self.known:
            best = dict.fromkeys(ways, float("inf"))
            for _ in range(self.rounds):  # in turns, so that a disturbance hits all of them
                for way in list(best):
                    try:
                        best[way] = min(best[way], _seconds(ways[way], device))
                    except self.skip:
                        del best[way]
                        if not best:
                            raise
            self.known[key] = min(best, key=lambda way: best[way])
        return self.known[key]  # type: ignore[return-value]


def _seconds(call: Callable[[], object], device: torch.device | None) -> float:
    start = time.perf_counter()
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
