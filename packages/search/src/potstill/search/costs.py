"""What students cost on this device: parameters, multiply-adds, bytes and milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core import BackendError, count_macs, count_parameters, latency
from potstill.core.measure import Load, Timing
from potstill.core.measure.bench import BUSY

__all__ = ["Latency", "measure", "require_steady", "static_costs"]

Example = Tensor | tuple[Any, ...]
"""What a call gets: the images of a deployed batch; or several arguments."""

Timer = Callable[[nn.Module, Example], "Latency"]
SPREAD = 1.5


@dataclass(frozen=True)
class Latency:
    """Time of a call in milliseconds.

    Attributes:
        milliseconds: Median over blocks of calls.
        low: 20th percentile.
        high: 80th percentile.
        others: Cores that other processes used meanwhile.
    """

    milliseconds: float
    low: float
    high: float
    others: float = 0.0

    @property
    def steady(self) -> bool:
        """Whether the clock can be trusted: a spread below 1.5, and nobody else at work."""
        return self.high <= SPREAD * self.low and self.others <= BUSY


def arguments(example: Example) -> tuple[Any, ...]:
    """The arguments of a call."""
    return example if isinstance(example, tuple) else (example,)


def static_costs(model: nn.Module, example: Example) -> dict[str, float]:
    """Parameters, multiply-adds of a call, and megabytes (10^6 bytes) of weights and buffers."""
    tensors = chain(model.parameters(), model.buffers())
    size = sum(t.numel() * t.element_size() for t in tensors)
    macs = count_macs(model, *arguments(example))
    return {"parameters": count_parameters(model), "macs": macs, "megabytes": size / 1e6}


def measure(model: nn.Module, example: Example, attempts: int = 3) -> Latency:
    """Time calls of a model in eval mode, without gradients, by the wall clock.

    Timings that are not steady are taken again, in longer blocks; the last ones are returned.

    Args:
        model: On the device that counts; it is left in eval mode.
        example: On the same device.
        attempts: How often, at most.
    """
    model.eval()
    for attempt in range(attempts):
        with torch.inference_mode(), Load() as load:
            timing: Timing = latency(
                model, *arguments(example), blocks=9, block_seconds=0.01 * 2**attempt
            )
        median, low, high = (1e3 * value for value in (timing.median, timing.p20, timing.p80))
        found = Latency(median, low, high, load.others)
        if found.steady:
            break
    return found


def require_steady(found: Sequence[Latency]) -> None:
    """Refuse to rank by timings that cannot be trusted.

    Raises:
        BackendError: Says how many are unsteady, and what to do.
    """
    if unsteady := [one for one in found if not one.steady]:
        worst = max(one.high / one.low for one in unsteady)
        others = max(one.others for one in unsteady)
        raise BackendError(
            f"suggest: timings must be steady to rank by milliseconds, got {len(unsteady)} of "
            f"{len(found)} that are not (80th percentile up to {worst:.2f} times the 20th, other "
            f"processes on up to {others:.1f} cores); wait until the machine is idle and call it "
            "again, or give a budget in macs, parameters or megabytes"
        )
