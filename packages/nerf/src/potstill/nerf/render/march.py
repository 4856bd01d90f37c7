"""Marching: the samples of rays in occupied space, packed one ray after the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from potstill.core import DataError
from potstill.nerf.backends import MARCHERS
from potstill.nerf.backends.nerfaccgrid import CONTRACTED
from potstill.nerf.render.occupancy import Occupancy
from potstill.nerf.space import Rays, Space

__all__ = ["EmptyBatches", "Samples", "march", "march_within", "ranks"]


class Samples(NamedTuple):
    """Packed samples of R rays.

    Attributes:
        points: Points in marching coordinates, [M 3].
        t: Position along the ray, [M].
        dt: Length of the interval, [M].
        ray: Number of the ray, sorted, [M].
        counts: Samples of each ray, [R].
    """

    points: Tensor
    t: Tensor
    dt: Tensor
    ray: Tensor
    counts: Tensor

    def within(self, budget: int) -> Samples:
        """The samples of the first rays, at least one, that together have at most ``budget``.

        Of several processes, whose rays follow in turn, these are the first rays of all, with
        ``budget`` times the number of processes.
        """
        (rank, world), counts = ranks(), self.counts
        if world > 1:
            parts = [torch.empty_like(counts) for _ in range(world)]
            dist.all_gather(parts, counts)
            counts = torch.stack(parts, 1).flatten()
        rays = max(int((counts.cumsum(0) <= budget * world).sum()), 1)
        rays = max(-(-(rays - rank) // world), 1)
        end = int(self.counts[:rays].sum())
        points, t, dt, ray = (column[:end] for column in self[:4])
        return Samples(points, t, dt, ray, self.counts[:rays])

    def some(self, chosen: Tensor) -> Samples:
        """The samples that a mask [M] or ascending indices choose, of the same rays."""
        points, t, dt, ray = (column[chosen] for column in self[:4])
        return Samples(points, t, dt, ray, torch.bincount(ray, minlength=len(self.counts)))


class EmptyBatches:
    """Refuses a training whose rays never meet occupied space: 100 empty batches in a row.

    Args:
        name: Name in the message.
        advice: Advice in the message.
    """

    def __init__(self, name: str, advice: str) -> None:
        self.name, self.advice, self.count = name, advice, 0

    def check(self, samples: int) -> None:
        """Look at the number of samples of a batch.

        Raises:
            DataError: It is the 100th without a sample.
        """
        self.count = 0 if samples else self.count + 1
        if self.count >= 100:
            raise DataError(
                f"{self.name}: rays must meet occupied space, got 100 batches without a sample; "
                f"{self.advice}"
            )


@torch.no_grad()
def march(
    rays: Rays,
    space: Space,
    occupancy: Occupancy,
    jitter: Tensor | None = None,
    backend: str = "auto",
) -> Samples:
    """Sample rays where the space is occupied.

    Args:
        rays: Rays in marching coordinates.
        space: Region, with the lengths of the intervals.
        occupancy: Cells that are worth samples.
        jitter: Place of the samples in their intervals, [R] in [0, 1]; the middle when None.
        backend: Name of the backend that marches; ``"auto"`` takes the best one that knows the
            space and runs on the device of the rays.

    Raises:
        BackendError: The backend cannot run here, or does not do this space.
    """
    if jitter is None:
        jitter = torch.full_like(rays.base, 0.5)
    needs = (CONTRACTED,) if space.kind == "contracted" else ()
    t, dt, ray, counts = MARCHERS.resolve(backend, rays.origins.device, needs).run(
        rays.origins,
        rays.directions,
        rays.base,
        rays.far,
        jitter,
        space.edges().to(rays.origins),
        space.affine(rays.origins),
        occupancy.binaries[0],
    )
    points = rays.origins[ray] + t[:, None] * rays.directions[ray]
    return Samples(points, t, dt, ray, counts)


def march_within(
    rays: Rays, space: Space, occupancy: Occupancy, jitter: Tensor, budget: int
) -> Samples:
    """Samples of as many of the first rays, at least one, as together have at most ``budget``.

    The cost of a batch then hardly changes while a scene empties.
    """
    count = min(512, len(rays))
    while True:
        samples = march(rays[:count], space, occupancy, jitter[:count])
        beyond = len(samples.t) - budget
        if ranks()[1] > 1:
            shared = samples.counts.new_tensor([beyond])
            dist.all_reduce(shared)
            beyond = int(shared)
        if beyond >= 0 or count == len(rays):
            return samples.within(budget)
        count = min(2 * count, len(rays))


def ranks() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
