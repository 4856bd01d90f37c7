"""Teacher and student at the same samples: what is learned from, and what is compared with it."""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.nerf.fields.base import Field
from potstill.nerf.fields.factored import VMField
from potstill.nerf.render.composite import composite, transmittance
from potstill.nerf.render.march import Samples
from potstill.nerf.space import Rays

__all__ = ["Targets", "compared", "targets_of"]

_VISIBLE = 1e-4  # weight of a sample below which its colour is not computed


class Targets(NamedTuple):
    """A teacher's values at samples.

    Attributes:
        samples: Those of the samples that light reaches, M of them.
        feature: Output of block 1, [M W].
        raw: Clamped log density, [M].
        visible: Mask of the samples with weight, [M].
        rgb: Colours of the visible ones, [K 3].
        pixel: Colours of the rays, [R 3].
    """

    samples: Samples
    feature: Tensor
    raw: Tensor
    visible: Tensor
    rgb: Tensor
    pixel: Tensor


@torch.no_grad()
def targets_of(
    teacher: Field, rays: Rays, samples: Samples, background: Tensor, hidden: float, colors: bool
) -> Targets:
    """Evaluate a teacher.

    Args:
        teacher: A trained field.
        rays: Rays in marching coordinates.
        samples: Samples of the rays.
        background: Colour behind each ray, [R 3].
        hidden: Transmittance below which samples are left out; 0 keeps all.
        colors: Evaluate block 2 and render the rays; else both colours are empty.
    """
    feature = teacher.features(samples.points)
    raw = teacher.activation.raw(feature[:, 0])
    light, weight = _weights(raw, samples)
    if hidden:
        kept = (light >= hidden).nonzero()[:, 0]
        samples, feature, raw, weight = samples.some(kept), feature[kept], raw[kept], weight[kept]
    visible = weight > _VISIBLE
    rgb = pixel = background[:0]
    if colors:
        seen = visible.nonzero()[:, 0]
        rgb = teacher.head(feature[seen], rays.views[samples.ray[seen]])
        pixel = composite(weight[seen], rgb, samples.some(seen), background).rgb
    return Targets(samples, feature, raw, visible, rgb, pixel)


def compared(
    student: Field, targets: Targets, rays: Rays, background: Tensor, wanted: Container[str]
) -> dict[str, tuple[Tensor, ...]]:
    """Evaluate a student at the samples of its targets.

    Args:
        student: A field with the space of the teacher.
        targets: The teacher's values, from `targets_of`.
        rays: Rays in marching coordinates.
        background: Colour behind each ray, [R 3].
        wanted: Names of the terms that have weight.

    Returns:
        Tensors of the terms by name: the student's first, then the teacher's.
    """
    samples, visible = targets.samples, targets.visible
    feature = student.features(samples.points)
    raw = feature[:, 0] + student.activation.shift
    tensors: dict[str, tuple[Tensor, ...]] = {"density": (raw, targets.raw)}
    if "feature" in wanted:
        tensors["feature"] = (raw, feature, targets.raw, targets.feature, visible)
    if "sparsity" in wanted and isinstance(student, VMField):
        n = student.config.density
        tensors["sparsity"] = (student.planes[:, :n], student.lines[:, :n])
    if "color" not in wanted and "pixel" not in wanted:
        return tensors
    needed, weight = visible, None
    if "pixel" in wanted:
        weight = _weights(student.activation.raw(feature[:, 0]), samples)[1]
        needed = visible | ~(weight.detach() <= _VISIBLE)  # NaN stays visible
    index = needed.nonzero()[:, 0]
    rgb = student.head(feature[index], rays.views[samples.ray[index]])
    tensors["color"] = (rgb[visible[index]], targets.rgb)
    if weight is not None:
        pixel = composite(weight[index], rgb, samples.some(index), background).rgb
        tensors["pixel"] = (pixel, targets.pixel)
    return tensors


def _weights(raw: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """Light that reaches each sample, and its contribution to the ray."""
    tau = raw.exp() * samples.dt
    light = transmittance(tau, samples.counts)
    return light, light * -torch.expm1(-tau)
