"""Pools of hard examples: poses and rays that the student renders worst come back."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from potstill.core import ConfigError

__all__ = ["Pools"]


class Pools(nn.Module):
    """Hard poses and hard rays, kept in buffers, so that checkpoints hold them.

    Source: Fang et al., "PVD-AL: Progressive Volume Distillation with Active Learning", arXiv
    2304.04012. Of every set of poses the worst tenth is kept, and a tenth of the rays looks from
    kept poses, turned a little; of every batch the worst tenth of rays is kept, and a tenth of the
    next batches are kept rays. The third pool, of points, is the choice of samples that
    teacher and student see (`Progression.hidden` and the visible samples in `FieldToField`).

    Args:
        views: Poses in a set.
        poses: Number of poses that are kept.
        rays: Number of rays that are kept.
        share: Share of poses and rays that is kept and that comes back.

    Raises:
        ConfigError: No room, or a share outside (0, 0.5].
    """

    def __init__(self, views: int, poses: int = 100, rays: int = 16384, share: float = 0.1) -> None:
        super().__init__()
        if min(views, poses, rays) < 1 or not 0 < share <= 0.5:
            raise ConfigError(
                "Pools: views, poses and rays must be at least 1 and share in (0, 0.5], got "
                f"{views}, {poses}, {rays} and {share}"
            )
        self.share = share
        self.register_buffer("poses", torch.eye(4).repeat(poses, 1, 1))
        self.register_buffer("rays", torch.zeros(rays, 6))
        self.register_buffer("written", torch.zeros(2, dtype=torch.int64))  # poses, rays so far
        self.register_buffer("errors", torch.zeros(views, 2))  # of this set: sum and count

    poses: Tensor
    rays: Tensor
    written: Tensor
    errors: Tensor

    def hard_poses(self, count: int, draw: torch.Generator) -> Float[Tensor, "count 4 4"]:
        """Some of the kept poses; none while none is kept."""
        return self._some(self.poses, int(self.written[0]), count, draw)

    def hard_rays(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Origins and directions of some kept rays, [count 3] each; none while none is kept."""
        chosen = self._some(self.rays, int(self.written[1]), count, draw)
        return chosen[:, :3], chosen[:, 3:]

    @torch.no_grad()
    def keep_rays(
        self,
        origins: Float[Tensor, "rays 3"],
        directions: Float[Tensor, "rays 3"],
        error: Float[Tensor, " rays"],
    ) -> None:
        """Keep the rays with the largest errors."""
        worst = error.topk(max(int(len(error) * self.share), 1)).indices
        self._keep(self.rays, 1, torch.cat([origins[worst], directions[worst]], dim=1))

    @torch.no_grad()
    def note(self, view: Integer[Tensor, " rays"], error: Float[Tensor, " rays"]) -> None:
        """Add up the errors of the poses of the current set."""
        pair = torch.stack([error, torch.ones_like(error)], dim=1)
        self.errors.index_add_(0, view, pair)

    @torch.no_grad()
    def end_set(self, poses: Float[Tensor, "views 4 4"]) -> None:
        """Keep the worst poses of a set, and begin the next."""
        mean = self.errors[:, 0] / self.errors[:, 1].clamp(min=1)
        worst = mean.topk(max(int(len(mean) * self.share), 1)).indices
        self._keep(self.poses, 0, poses[worst])
        self.errors.zero_()

    def _some(self, pool: Tensor, written: int, count: int, draw: torch.Generator) -> Tensor:
        filled = min(written, len(pool))
        if not filled:
            return pool[:0]
        return pool[torch.randint(filled, (count,), generator=draw).to(pool.device)]

    def _keep(self, pool: Tensor, which: int, items: Tensor) -> None:
        """Write over the oldest."""
        items = items[: len(pool)]
        at = (int(self.written[which]) + torch.arange(len(items), device=pool.device)) % len(pool)
        pool[at] = items
        self.written[which] += len(items)
