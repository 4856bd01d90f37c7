"""Field to field: teacher and student at the same samples of virtual rays."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Integer
from torch import Tensor, nn

from potstill.core import ConfigError, DataError, Distiller, Losses, generator
from potstill.nerf.distill.objective import Schedule, staged
from potstill.nerf.distill.pools import Pools
from potstill.nerf.distill.priors import PosePrior
from potstill.nerf.fields.base import Field
from potstill.nerf.fields.factored import VMField
from potstill.nerf.render.composite import composite, transmittance
from potstill.nerf.render.march import Samples, march
from potstill.nerf.space import Rays

__all__ = ["FieldToField", "VirtualBatch", "VirtualRays"]

_VISIBLE = 1e-4  # weight of a sample below which its colour is not computed


class VirtualBatch(NamedTuple):
    """Rays of cameras that nobody placed, one process's share of a batch.

    Attributes:
        poses: The current set, [V 4 4].
        view: From which of them, [R].
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
        prior: Where cameras stand, and their lens.
        rays: How many a batch, all processes together.
        views: Poses in a set.
        steps: Steps that a set lasts.
        seed: Of the draws.

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

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> VirtualBatch:
        """The rays of a step for one process: every ``world``-th of the batch."""
        number = step // self.steps
        if number != self._set[0]:
            poses = self.prior.poses(self.views, generator("poses", self.seed, number))
            self._set = (number, poses)
        draw, n, lens = generator("virtual", self.seed, step), self.rays, self.prior.lens
        pick = torch.rand(4, n, generator=draw)
        which = (pick[3] * len(lens)).long().clamp(max=len(lens) - 1)
        local = lens.rays(which, pick[0] * lens.width, pick[1] * lens.height)[1]
        view = (pick[2] * self.views).long().clamp(max=self.views - 1)
        behind, jitter = torch.rand(n, 3, generator=draw), torch.rand(n, generator=draw)
        mine = slice(rank, None, world)
        return VirtualBatch(self._set[1], view[mine], local[mine], behind[mine], jitter[mine])


class Lesson(NamedTuple):
    """What the teacher says of samples.

    Attributes:
        feature: Output of block 1, [M W].
        raw: Clamped log density, [M].
        visible: Whether a sample has weight, [M].
        rgb: Colours of the visible ones, [K 3].
        pixel: Colours of the rays, [R 3].
    """

    feature: Tensor
    raw: Tensor
    visible: Tensor
    rgb: Tensor
    pixel: Tensor


class FieldToField(Distiller):
    """A student learns what a teacher says of points and rays, without an image.

    Source: Fang et al., "One is All: Bridging the Gap Between Neural Radiance Fields
    Architectures with Progressive Volume Distillation", AAAI 2023, Section 3. Both fields are
    evaluated at the same samples, which lie in the student's occupancy grid (the teacher's,
    transferred) and stop where the teacher lets hardly any light through.

    As many rays are taken as fill the budget of samples, by the mean of the steps before.

    Args:
        student: In the space of the teacher.
        teacher: Any field.
        schedule: What counts when.
        samples: Samples a step, all processes together.
        prior: Turns hard poses, where the schedule has pools.
        views: Poses in a set, as in `VirtualRays`.
        steps: Steps that a set lasts, as in `VirtualRays`.
        projector: For features of different widths.
        seed: Of what comes back from the pools.

    Raises:
        ConfigError: The fields are the same, or describe different spaces.
    """

    student: Field
    idle = 0

    def __init__(
        self,
        student: Field,
        teacher: Field,
        schedule: Schedule,
        *,
        samples: int = 6144,
        prior: PosePrior | None = None,
        views: int = 100,
        steps: int = 50,
        projector: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        if student is teacher:
            raise ConfigError("FieldToField: student must be another field than teacher, got it")
        if student.space != teacher.space:
            raise ConfigError(
                f"FieldToField: student must describe the space of the teacher, {teacher.space}, "
                f"got {student.space}"
            )
        if not (student.has_features and teacher.has_features):
            schedule = schedule.without_features()
        if not isinstance(student, VMField):
            schedule = replace(schedule, sparsity=0.0)
        super().__init__(student, staged(schedule, lambda: self.progress, projector), teacher)
        self.schedule, self.samples, self.prior = schedule, samples, prior
        self.set_steps, self.seed = steps, seed
        if schedule.pools and prior is None:
            raise ConfigError("FieldToField: pools need a prior that turns hard poses, got None")
        self.pools = Pools(views) if schedule.pools else None
        # samples and rays so far, the older the less: 256 rays are a guess for the first step
        self.register_buffer("pace", torch.tensor([float(samples), 256.0]))

    pace: Tensor

    def forward(self, batch: VirtualBatch, step: int) -> Losses:
        """Features, densities and colours of samples, and colours of rays, as far as they count."""
        wanted = self.objective.at(step)
        origins, directions, fresh = self._rays(batch, step)
        count = len(origins)
        rays = self.student.space.trace(origins, directions)
        samples = march(rays, self.student.space, self.student.occupancy, batch.jitter[:count])
        background = batch.background[:count]
        lesson, samples = self._teach(
            rays, samples, background, bool({"color", "pixel"} & {*wanted})
        )
        self._follow(len(samples.t), count)
        tensors, error = self._answer(lesson, rays, samples, background, {*wanted})
        if self.pools is not None and error is not None:
            self.pools.keep_rays(origins, directions, error)
            self.pools.note(batch.view[fresh:count], error[fresh:])
        if self.pools is not None and (step + 1) % self.set_steps == 0:
            self.pools.end_set(batch.poses)
        return self.objective(step, tensors)

    def _rays(self, batch: VirtualBatch, step: int) -> tuple[Tensor, Tensor, int]:
        """Origins and directions of this process's rays; the first ``fresh`` come from pools."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)
        everyone = int(self.samples * float(self.pace[1] / self.pace[0].clamp(min=1.0)))
        count = max(-(-(everyone - rank) // world), 16)
        count = min(count, len(batch.view))
        poses = batch.poses[batch.view[:count]]
        if self.pools is None:
            return poses[:, :3, 3], _turned(poses, batch.local[:count]), 0
        assert self.prior is not None
        draw = generator("pools", self.seed, step, rank)
        share = max(int(count * self.pools.share), 1)
        hard = self.pools.hard_poses(share, draw)
        if len(hard):
            hard = self.prior.moved(hard.cpu(), draw).to(poses)
            poses = torch.cat([hard, poses[len(hard) :]])
        origins, directions = poses[:, :3, 3], _turned(poses, batch.local[:count])
        again = self.pools.hard_rays(share, draw)
        fresh = len(hard) + len(again[0])
        if len(again[0]):
            a, b = slice(None, len(hard)), slice(fresh, None)
            origins = torch.cat([origins[a], again[0], origins[b]])
            directions = torch.cat([directions[a], again[1], directions[b]])
        return origins, directions, fresh

    @torch.no_grad()
    def _teach(
        self, rays: Rays, samples: Samples, background: Tensor, colors: bool
    ) -> tuple[Lesson, Samples]:
        """The teacher at all samples, and those of them that light reaches."""
        assert self.teacher is not None
        teacher: Field = self.teacher.model
        feature = teacher.features(samples.points)
        raw = teacher.activation.raw(feature[:, 0])
        tau = raw.exp() * samples.dt
        light = transmittance(tau, samples.counts)
        weight = light * -torch.expm1(-tau)
        if self.schedule.hidden:
            kept = (light >= self.schedule.hidden).nonzero()[:, 0]
            samples, feature, raw, weight = (
                _some(samples, kept),
                feature[kept],
                raw[kept],
                weight[kept],
            )
        visible = weight > _VISIBLE
        rgb = pixel = background[:0]
        if colors:
            seen = visible.nonzero()[:, 0]
            rgb = teacher.head(feature[seen], rays.views[samples.ray[seen]])
            pixel = composite(weight[seen], rgb, _some(samples, seen), background).rgb
        return Lesson(feature, raw, visible, rgb, pixel), samples

    def _answer(
        self, lesson: Lesson, rays: Rays, samples: Samples, background: Tensor, wanted: set[str]
    ) -> tuple[dict[str, tuple[Tensor, ...]], Tensor | None]:
        """The student at the same samples: tensors of the terms, and the error of each ray."""
        student = self.student
        feature = student.features(samples.points)
        raw = feature[:, 0] + student.activation.shift
        tensors: dict[str, tuple[Tensor, ...]] = {"density": (raw, lesson.raw)}
        if "feature" in wanted:
            tensors["feature"] = (raw, feature, lesson.raw, lesson.feature, lesson.visible)
        if "sparsity" in wanted and isinstance(student, VMField):
            n = student.config.density
            tensors["sparsity"] = (student.planes[:, :n], student.lines[:, :n])
        if not {"color", "pixel"} & wanted:
            return tensors, None
        needed, error, weight = lesson.visible, None, None
        if "pixel" in wanted:
            tau = student.activation.raw(feature[:, 0]).exp() * samples.dt
            weight = transmittance(tau, samples.counts) * -torch.expm1(-tau)
            needed = needed | ~(weight.detach() <= _VISIBLE)  # NaN stays visible
        index = needed.nonzero()[:, 0]
        rgb = student.head(feature[index], rays.views[samples.ray[index]])
        tensors["color"] = (rgb[lesson.visible[index]], lesson.rgb)
        if weight is not None:
            pixel = composite(weight[index], rgb, _some(samples, index), background).rgb
            tensors["pixel"] = (pixel, lesson.pixel)
            error = (pixel.detach() - lesson.pixel).abs().mean(1)
        return tensors, error

    @torch.no_grad()
    def _follow(self, samples: int, rays: int) -> None:
        """Learn how many samples a ray has, and refuse rays that never have one."""
        now = self.pace.new_tensor([float(samples), float(rays)])
        if _several():
            dist.all_reduce(now)
        self.idle = 0 if float(now[0]) else self.idle + 1
        if self.idle >= 100:
            raise DataError(
                "FieldToField: rays must meet occupied space, got 100 batches without a sample; "
                "does the pose prior look at the field?"
            )
        self.pace.mul_(0.9).add_(now, alpha=0.1)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def _turned(poses: Tensor, local: Tensor) -> Tensor:
    """Directions of cameras as directions of the world, unit."""
    return torch.nn.functional.normalize((poses[:, :3, :3] @ local[:, :, None])[..., 0], dim=1)


def _some(samples: Samples, index: Tensor) -> Samples:
    """A part of the samples, of the same rays."""
    points, t, dt, ray, counts = samples
    ray = ray[index]
    return Samples(
        points[index], t[index], dt[index], ray, torch.bincount(ray, minlength=len(counts))
    )
