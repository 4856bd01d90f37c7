"""Sines and cosines of growing frequency."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError

__all__ = ["frequencies"]


def frequencies(
    x: Float[Tensor, "points axes"], bands: int = 10, include_pi: bool = False
) -> Float[Tensor, "points width"]:
    """``[x, sin(2^k x), cos(2^k x)]`` for k from 0 to ``bands - 1``.

    Source: Mildenhall et al., "NeRF", ECCV 2020, Eq. (4), with the identity in front and, as in
    the code of that paper and of PVD, without pi; ``include_pi`` puts it in.

    Args:
        x: Coordinates, usually in [-1, 1].
        bands: Number of frequencies, at least 0.
        include_pi: Use ``2^k pi x`` as the paper prints it.

    Returns:
        ``axes * (1 + 2 bands)`` numbers a point: x, then for each k the sines and the cosines.

    Example:
        >>> frequencies(torch.zeros(1, 3), bands=10).shape
        torch.Size([1, 63])
    """
    if bands < 0:
        raise ConfigError(f"frequencies: bands must be at least 0, got {bands}")
    factors = 2.0 ** torch.arange(bands, dtype=x.dtype, device=x.device)
    angles = x[:, None, :] * (factors * (math.pi if include_pi else 1.0))[:, None]  # [B K 3]
    waves = torch.stack([angles.sin(), angles.cos()], dim=2)  # [B K 2 3]
    return torch.cat([x, waves.flatten(1)], dim=1)
