"""What a step trains on: noise, conditions, and real items where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core import ConfigError, ShapeError, common_draws, fingerprint, generator
from potstill.flow.teachers.velocity import spread

__all__ = ["Batch", "Items", "Prior", "noise_like", "noised", "times_like"]


class Items(NamedTuple):
    """Real items, or pairs with the noise that they came from.

    Attributes:
        values: [items ...].
        labels: Class of each, or None.
        noise: Noise of each, for pairs; else None.
    """

    values: Tensor
    labels: Tensor | None = None
    noise: Tensor | None = None


class Batch(NamedTuple):
    """A batch of a step.

    Attributes:
        noise: [items ...].
        condition: Condition of each, or None.
        real: Real items of the same conditions, or None.
        pairs: Pairs of noise and the teacher's endpoint, or None.
    """

    noise: Tensor
    condition: Tensor | None = None
    real: Tensor | None = None
    pairs: Items | None = None


class Prior:
    """Noise, conditions and, where there are any, real items and pairs.

    A pure function of (seed, step), drawn for all processes together.

    Args:
        shape: Shape of an item.
        batch_size: Items per process and step.
        conditions: Conditions to draw from, [any ...]; or their number; 0 for none.
        data: Real items; their labels are then the conditions.
        pairs: Pairs of noise and endpoint.

    Raises:
        ConfigError: No items.
        ShapeError: Items of another shape.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        batch_size: int,
        conditions: Tensor | int = 0,
        data: Items | None = None,
        pairs: Items | None = None,
    ) -> None:
        for name, items in (("data", data), ("pairs", pairs)):
            if items is not None and not len(items.values):
                raise ConfigError(f"Prior: {name} must hold items, got none")
            if items is not None and tuple(items.values.shape[1:]) != tuple(shape):
                raise ShapeError(
                    f"Prior: {name} must be [items, {', '.join(map(str, shape))}], as the teacher "
                    f"takes them, got {list(items.values.shape)}; resize them"
                )
        self.shape, self.batch_size, self.data, self.pairs = tuple(shape), batch_size, data, pairs
        known = torch.arange(conditions) if isinstance(conditions, int) else conditions
        self.conditions = known if len(known) else None

    def steps_per_epoch(self, world: int) -> int | None:
        """Passes over the real items; unknown without them."""
        if self.data is None:
            return None
        return max(len(self.data.values) // (self.batch_size * world), 1)

    def stream(self, start: int, shard: tuple[int, int, int]) -> Iterator[Batch]:
        """Batches of one process from step ``start`` on, without end."""
        seed, rank, world = shard
        for step in count(start):
            rng, total = generator("prior", seed, step), self.batch_size * world
            mine = slice(rank, None, world)
            noise = torch.randn(total, *self.shape, generator=rng)[mine]
            real = condition = None
            if self.data is not None:
                rows = torch.randint(len(self.data.values), (total,), generator=rng)[mine]
                real = self.data.values[rows]
                condition = None if self.data.labels is None else self.data.labels[rows]
            elif self.conditions is not None:
                rows = torch.randint(len(self.conditions), (total,), generator=rng)[mine]
                condition = self.conditions[rows]
            yield Batch(noise, condition, real, self._pairs(rng, total, mine))

    def fingerprint(self) -> str:
        """Shapes, and digests of what is drawn from."""
        held = [self.conditions, *(self.data or ()), *(self.pairs or ())]
        digests = [None if t is None else fingerprint(t.numpy()) for t in held]
        return f"prior of {list(self.shape)} {self.batch_size} {fingerprint(digests)}"

    def _pairs(self, rng: torch.Generator, total: int, mine: slice) -> Items | None:
        if self.pairs is None:
            return None
        rows = torch.randint(len(self.pairs.values), (total,), generator=rng)[mine]
        return Items(*(None if part is None else part[rows] for part in self.pairs))  # type: ignore[arg-type]


def noise_like(x: Tensor) -> Tensor:
    """Noise of the shape of a batch, the same whatever the number of processes."""
    draws = common_draws(x.device)
    shape = draws.world * len(x), *x.shape[1:]
    found = torch.randn(shape, generator=draws.generator, device=x.device, dtype=x.dtype)
    return found[draws.mine]


def times_like(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform times of the items of a batch, [items], the same whatever the processes."""
    draws = common_draws(x.device)
    size = draws.world * len(x)
    found = torch.rand(size, generator=draws.generator, device=x.device, dtype=x.dtype)
    return low + (high - low) * found[draws.mine]


def noised(x: Tensor, between: tuple[float, float] = (0.0, 1.0)) -> tuple[Tensor, Tensor]:
    """Times between two of the linear path, [items], and the items ``x`` there."""
    times = times_like(x, *between)
    t = spread(times, x)
    return times, (1 - t) * x + t * noise_like(x)
