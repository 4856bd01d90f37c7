"""Marching: the samples of rays in occupied space, packed one ray after the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from potstill.nerf.backends import MARCHERS
from potstill.nerf.render.occupancy import Occupancy
from potstill.nerf.space import Rays, Space

__all__ = ["Samples", "march"]


class Samples(NamedTuple):
    """Packed samples of R rays.

    Attributes:
        points: In marching coordinates, [M 3].
        t: Position along the ray, [M].
        dt: Length of the interval, [M].
        ray: Which ray, sorted, [M].
        counts: Samples of each ray, [R].
    """

    points: Tensor
    t: Tensor
    dt: Tensor
    ray: Tensor
    counts: Tensor

    def first(self, rays: int) -> Samples:
        """The samples of the first ``rays`` rays only."""
        end = int(self.counts[:rays].sum())
        points, t, dt, ray, counts = self
        return Samples(points[:end], t[:end], dt[:end], ray[:end], counts[:rays])

    def within(self, budget: int) -> Samples:
        """The samples of the first rays, at least one, that together have at most ``budget``."""
        return self.first(max(int((self.counts.cumsum(0) <= budget).sum()), 1))

    def where(self, keep: Tensor) -> Samples:
        """The samples that a mask [M] chooses, of the same rays."""
        chosen = keep.nonzero()[:, 0]
        points, t, dt, ray = (column[chosen] for column in self[:4])
        return Samples(points, t, dt, ray, torch.bincount(ray, minlength=len(self.counts)))


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
        rays: In marching coordinates.
        space: Says how long the intervals are.
        occupancy: Says where samples are worth it.
        jitter: Place of the samples in their intervals, [R] in [0, 1]; the middle when None.
        backend: Who marches.
    """
    if jitter is None:
        jitter = torch.full_like(rays.base, 0.5)
    t, dt, ray, counts = MARCHERS.resolve(backend, rays.origins.device).run(
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
