"""Virtual rays: those of cameras that nobody placed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from potstill.core import ConfigError, generator
from potstill.core.engine import Shard, sketch
from potstill.nerf.distill.priors import PosePrior
from potstill.nerf.render.march import ranks

__all__ = ["VirtualBatch", "VirtualRays", "rays_from"]


class VirtualBatch(NamedTuple):
    """Rays of virtual cameras, one process's share of a batch.

    Attributes:
        poses: The current set, [V 4 4].
        view: Pose of each ray, [R].
        local: Direction in the coordinates of the camera, unit, [R 3].
        background: [R 3].
        jitter: Place of samples in their intervals, [R].
    """

    poses: Float[Tensor, "views 4 4"]
    view: Integer[Tensor, " rays"]
    local: Float[Tensor, "rays 3"]
    background: Float[Tensor, "rays 3"]
    jitter: Float[Tensor, " rays"]


class VirtualRays:
    """Rays from a pose prior: a pure function of (seed, step), divided among the processes.

    Args:
        prior: Poses of cameras, and their lens.
        rays: Rays per batch, all processes together.
        views: Poses in a set.
        steps: Steps that a set lasts.
        seed: Seed of the draws.

    Raises:
        ConfigError: Less than one ray, view or step.
    """

    def __init__(
        self, prior: PosePrior, rays: int = 4096, views: int = 100, steps: int = 50, seed: int = 0
    ) -> None:
        if min(rays, views, steps) < 1:
            raise ConfigError(
                f"VirtualRays: rays, views and steps must be at least 1, got {rays}, {views} and "
                f"{steps}"
            )
        self.prior, self.rays, self.views, self.steps, self.seed = prior, rays, views, steps, seed
        self._set: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def batch_size(self) -> float:
        """Rays of one process: so a run continues on any number of them with the same batches."""
        return self.rays / ranks()[1]

    def steps_per_epoch(self, world: int) -> None:
        """There are no epochs."""

    def stream(self, start: int, shard: Shard) -> Iterator[VirtualBatch]:
        """Batches of one process from step ``start`` on."""
        return (self(step, shard.rank, shard.world) for step in count(start))

    def fingerprint(self) -> str:
        """Sizes, and a digest of the first batch."""
        return f"{self.rays} rays of {self.views} views for {self.steps} steps {sketch(self(0))}"

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> VirtualBatch:
        """The rays of a step for one process: every ``world``-th of the batch."""
        number = step // self.steps
        if number != self._set[0]:
            poses = self.prior.poses(self.views, generator("poses", self.seed, number))
            self._set = (number, poses)
        draw, n, lens = generator("virtual", self.seed, step), self.rays, self.prior.lens
        pick = torch.rand(4, n, generator=draw)
        which = (pick[3] * len(lens)).long().clamp(max=len(lens) - 1)
        width, height = lens.extents[which].unbind(1)
        local = lens.rays(which, pick[0] * width, pick[1] * height)[1]
        view = (pick[2] * self.views).long().clamp(max=self.views - 1)
        behind, jitter = torch.rand(n, 3, generator=draw), torch.rand(n, generator=draw)
        mine = slice(rank, None, world)
        return VirtualBatch(self._set[1], view[mine], local[mine], behind[mine], jitter[mine])


def rays_from(poses: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and unit directions in the world of directions [R 3] at poses [R 4 4]."""
    turned = (poses[:, :3, :3] @ local[:, :, None])[..., 0]
    return poses[:, :3, 3], torch.nn.functional.normalize(turned, dim=1)
