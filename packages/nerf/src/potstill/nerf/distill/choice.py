"""Which rays of a batch are taken: as many as fill the budget of samples, and hard ones again."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from potstill.core import ConfigError, generator
from potstill.nerf.distill.pools import Pools
from potstill.nerf.distill.priors import PosePrior
from potstill.nerf.distill.virtual import VirtualBatch, rays_from
from potstill.nerf.render.march import EmptyBatches, ranks

__all__ = ["ChosenRays", "RayChoice"]


class ChosenRays(NamedTuple):
    """Rays of one process in a step.

    Attributes:
        origins: [R 3].
        directions: Unit, [R 3].
        returned: Number of the first rays that come from pools.
    """

    origins: Tensor
    directions: Tensor
    returned: int


class RayChoice(nn.Module):
    """Takes as many rays as fill a budget of samples, by the mean of the steps before.

    With pools, hard poses and hard rays of earlier steps take the place of the first ones.

    Args:
        samples: Samples a step, all processes together.
        seed: Seed of what comes back from the pools.
        pools: Hard poses and rays; None brings nothing back.
        prior: Turns hard poses, where there are pools.
        steps: Steps that a set of poses lasts.

    Raises:
        ConfigError: Pools without a prior.
    """

    def __init__(
        self, samples: int, seed: int, pools: Pools | None, prior: PosePrior | None, steps: int
    ) -> None:
        super().__init__()
        if pools is not None and prior is None:
            raise ConfigError("FieldToField: pools need a prior that turns hard poses, got None")
        self.samples, self.seed, self.steps = samples, seed, steps
        self.pools, self.prior = pools, prior
        self.empty = EmptyBatches("FieldToField", "does the pose prior look at the field?")
        # samples and rays so far, the older the less: 256 rays are a guess for the first step
        self.register_buffer("pace", torch.tensor([float(samples), 256.0]))

    pace: Tensor

    def choose(self, batch: VirtualBatch, step: int) -> ChosenRays:
        """This process's rays of a step."""
        rank, world = ranks()
        everyone = int(self.samples * float(self.pace[1] / self.pace[0].clamp(min=1.0)))
        count = min(max(-(-(max(everyone, 16) - rank) // world), 1), len(batch.view))
        poses, local = batch.poses[batch.view[:count]], batch.local[:count]
        if self.pools is None or self.prior is None:
            return ChosenRays(*rays_from(poses, local), 0)
        draw = generator("pools", self.seed, step, rank)
        share = max(int(count * self.pools.share), 1)
        hard = self.pools.hard_poses(share, draw)
        if len(hard):
            hard = self.prior.moved(hard.cpu(), draw).to(poses)
            poses = torch.cat([hard, poses[len(hard) :]])
        again = self.pools.hard_rays(share, draw)
        turned, returned = len(hard), len(hard) + len(again[0])
        origins, directions = (
            torch.cat([fresh[:turned], old, fresh[returned:]])
            for fresh, old in zip(rays_from(poses, local), again, strict=True)
        )
        return ChosenRays(origins, directions, returned)

    @torch.no_grad()
    def learn(
        self,
        batch: VirtualBatch,
        rays: ChosenRays,
        step: int,
        samples: int,
        pixel: tuple[Tensor, ...] | None,
    ) -> None:
        """Take note of a step: its samples, and its pixels by student and teacher, [R 3] each.

        Raises:
            DataError: It is the 100th in a row without a sample.
        """
        count = len(rays.origins)
        now = self.pace.new_tensor([float(samples), float(count)])
        if ranks()[1] > 1:
            dist.all_reduce(now)
        self.empty.check(int(now[0]))
        self.pace.mul_(0.9).add_(now, alpha=0.1)
        if self.pools is None:
            return
        if pixel is not None:
            error = (pixel[0] - pixel[1]).abs().mean(1)
            self.pools.keep_rays(rays.origins, rays.directions, error)
            self.pools.note(batch.view[rays.returned : count], error[rays.returned :])
        if (step + 1) % self.steps == 0:
            self.pools.end_set(batch.poses)
