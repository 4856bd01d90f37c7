"""Terms that need no photo: depth maps, compact rays and smooth grids."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import Mean
from potstill.nerf.render.composite import sum_before
from potstill.nerf.render.march import Samples
from potstill.nerf.space import Space

__all__ = ["depth", "distortion", "variation"]


def distortion(weight: Float[Tensor, " samples"], samples: Samples, space: Space) -> Tensor:
    """How far the weights of a ray are spread: against fog and floaters.

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, Eq. (15); the double sum as running sums over
    sorted samples. Distances are shares of the way that `Space.edges` divides evenly, so that the
    far part of a contracted ray counts no more than the near part.

    Args:
        weight: Weights of packed samples, from `Rendered`.
        samples: Positions along the rays.
        space: Region of the rays.

    Returns:
        Scalar, mean over rays; no unit, in [0, 1].
    """
    place = space.share(samples.t)
    mass = sum_before(weight, samples.counts)
    moment = sum_before(weight * place, samples.counts)
    between = 2 * (weight * (place * mass - moment)).sum()
    within = weight.square().sum() / (3 * space.steps)
    return ((between + within) / max(len(samples.counts), 1)).to(weight)


def depth(rendered: Float[Tensor, " rays"], measured: Float[Tensor, " rays"]) -> Tensor:
    """Mean absolute difference of expected and measured distances, where these are known.

    Source: Deng et al., "Depth-supervised NeRF", CVPR 2022, in the simpler form of its Eq. (3)
    without a variance.

    Args:
        rendered: Expected distances, from `Rendered`.
        measured: Distances along the rays; 0 where they are unknown.
    """
    known = measured > 0
    return Mean(((rendered - measured).abs() * known).sum(), known.sum())


def variation(*differences: Tensor) -> Tensor:
    """Mean squared difference of neighbours on a grid, summed over kinds of neighbours.

    Source: Rudin, Osher and Fatemi, "Nonlinear total variation", Physica D 1992, squared as in Chen
    et al., "TensoRF", ECCV 2022, Section 4.4.

    Args:
        *differences: Differences, from `Field.differences`.
    """
    return torch.stack([difference.square().mean() for difference in differences]).sum()
