"""PSNR and SSIM as super-resolution papers report them, under two protocols."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import ConfigError, ShapeError, psnr, ssim

__all__ = ["LUMA", "PROTOCOLS", "Protocol", "Score", "luma", "quantize", "score"]

Protocol = Literal["paper", "imdn-repo"]

PROTOCOLS: tuple[Protocol, ...] = ("paper", "imdn-repo")
"""Published tables of IMDN are reproduced by ``"paper"``; its own script rounds Y to bytes."""


LUMA = (65.481, 128.553, 24.966)
"""Weights of red, green and blue in the luma of BT.601, studio range."""


class Score(NamedTuple):
    """How close an image is to the original.

    Attributes:
        psnr: PSNR of the luma, dB.
        ssim: SSIM of the luma, from -1 to 1.
        psnr_rgb: Over all three channels of the same cropped bytes, dB.
    """

    psnr: float
    ssim: float
    psnr_rgb: float


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """BT.601 luma in studio range, ``16 + (65.481 R + 128.553 G + 24.966 B) / 255``: 16 to 235.

    Example:
        >>> luma(np.full((1, 1, 3), 255, np.uint8)).round(6)
        array([[235.]])
    """
    weights = np.array(LUMA) / 255
    values: NDArray[np.float64] = 16 + rgb.astype(np.float64) @ weights
    return values


def quantize(image: Tensor) -> NDArray[np.uint8]:
    """A network's output ``[1 3 H W]`` or ``[3 H W]`` in [0, 1] as bytes ``[H W 3]``."""
    image = image.detach().reshape(3, *image.shape[-2:])
    return image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()


def score(
    image: NDArray[np.uint8],
    original: NDArray[np.uint8],
    crop: int,
    protocol: Protocol = "paper",
) -> Score:
    """Compare bytes with the original, ``crop`` pixels at each border left out.

    ``"paper"`` keeps the luma of the bytes as it is; ``"imdn-repo"`` rounds it to bytes first, as
    the authors' script does, which costs up to 0.09 dB and explains why users of that script could
    not reproduce the table.

    Args:
        image: The enlarged image, ``[H W 3]``.
        original: Original of the same size.
        crop: Border, usually the factor.
        protocol: One of ``PROTOCOLS``.

    Raises:
        ConfigError: An unknown protocol.
        ShapeError: Not bytes ``[H, W, 3]``, sizes differ, or nothing is left after cropping.

    Example:
        >>> image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
        >>> score(image, image, crop=2).ssim
        1.0
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"score: protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}"
        )
    if image.shape != original.shape or image.ndim != 3 or image.shape[2] != 3:
        raise ShapeError(
            f"score: image and original must be [H, W, 3] of one size, got {list(image.shape)} and "
            f"{list(original.shape)}; crop the original to a multiple of the factor"
        )
    if image.dtype != np.uint8 or original.dtype != np.uint8:
        raise ShapeError(
            f"score: image and original must be uint8, got {image.dtype} and {original.dtype}"
        )
    if min(image.shape[:2]) < 2 * crop + 11:
        raise ShapeError(
            f"score: image must be at least {2 * crop + 11} pixels a side with crop={crop}, got "
            f"{list(image.shape[:2])}; SSIM has a window of 11"
        )
    inner = slice(crop, -crop or None)
    ours, theirs = image[inner, inner], original[inner, inner]
    ys = [luma(ours), luma(theirs)]
    if protocol == "imdn-repo":
        ys = [y.round() for y in ys]
    a, b = (torch.from_numpy(y) for y in ys)
    rgb = [torch.from_numpy(x.astype(np.float64)) for x in (ours, theirs)]
    return Score(
        float(psnr(a, b, 255.0)),
        float(ssim(a, b, 255.0)),
        float(psnr(rgb[0], rgb[1], 255.0)),
    )
