"""Compositing: weights of packed samples, and what rays see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from potstill.core import ShapeError
from potstill.nerf.render.march import Samples

__all__ = [
    "OPAQUE",
    "Rendered",
    "composite",
    "sum_before",
    "transmittance",
    "weights",
]

OPAQUE = 1e-4
"""Transmittance below which nothing is seen any more."""


class Rendered(NamedTuple):
    """What rays see.

    Attributes:
        rgb: Colour over the background, [R 3].
        opacity: Sum of the weights, [R].
        depth: Expected distance ``sum w t``, not divided by the opacity, [R]; 0 for empty rays.
        weight: Weight of each sample, [M]; where rays were followed with gradients.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    weight: Tensor | None = None


def sum_before(
    values: Float[Tensor, " samples"], counts: Integer[Tensor, " rays"]
) -> Float[Tensor, " samples"]:
    """Sum of the values that come before each one in its ray.

    One running sum over the packed samples in double precision, cut at the rays, so that a long
    batch costs no digits.
    """
    if counts.device.type == "cpu" and int(counts.sum()) != len(values):  # elsewhere it would wait
        raise ShapeError(
            f"sum_before: counts must sum to the {len(values)} samples, got {int(counts.sum())}"
        )
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    before = values.to(wide).cumsum(0) - values  # [M]
    if len(values) == 0:
        return before
    starts = (counts.cumsum(0) - counts).clamp(max=len(values) - 1)
    return before - before[starts].repeat_interleave(counts)


def transmittance(
    tau: Float[Tensor, " samples"], counts: Integer[Tensor, " rays"]
) -> Float[Tensor, " samples"]:
    """Light that reaches each sample: ``exp(-sum of tau before it in its ray)``.

    Source: Max, "Optical Models for Direct Volume Rendering", IEEE TVCG 1995. A product of
    ``1 - alpha`` would have no gradient through an opaque sample.
    """
    return torch.exp(-sum_before(tau, counts)).to(tau)


def weights(sigma: Tensor, samples: Samples) -> Tensor:
    """Contribution of each sample to its ray, [M]: transmittance times opacity.

    Source: Mildenhall et al., "NeRF", ECCV 2020, Eq. (3).
    """
    tau = sigma * samples.dt
    return transmittance(tau, samples.counts) * -torch.expm1(-tau)


def composite(
    weight: Float[Tensor, " samples"],
    rgb: Float[Tensor, "samples 3"],
    samples: Samples,
    background: Tensor | float = 1.0,
) -> Rendered:
    """Sum up the samples of each ray over a background.

    Args:
        weight: Weights, from `weights`.
        rgb: Colours.
        samples: Their rays and distances.
        background: A number, a colour [3], or one a ray [R 3].
    """
    count = len(samples.counts)
    values = torch.cat([rgb, torch.ones_like(rgb[:, :1]), samples.t[:, None]], dim=1)
    summed = values.new_zeros(count, 5).index_add(0, samples.ray, weight[:, None] * values)
    opacity = summed[:, 3]
    color = summed[:, :3] + (1 - opacity[:, None]) * background
    return Rendered(color, opacity, summed[:, 4])
