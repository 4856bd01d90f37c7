"""What `upscale` accepts as arrays and tensors, and what it says about the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import ShapeError

__all__ = ["check_array", "check_tensor"]


def check_tensor(image: Tensor) -> Tensor:
    """A batch of RGB images ``[B 3 H W]``, floating, finite, in [0, 1].

    Raises:
        ShapeError: Another layout, dtype or range; the message says what it looks like.
    """
    shape = list(image.shape)
    if image.ndim != 4 or image.shape[1] != 3:
        remedy = "pass a tensor [B, 3, H, W]"
        if image.ndim == 4 and image.shape[3] in (3, 4):
            remedy = "it looks like [B, H, W, C]: use x.permute(0, 3, 1, 2)"
        elif image.ndim == 3 and image.shape[0] == 3:
            remedy = "it has no batch axis: use x[None]"
        elif image.ndim == 4 and image.shape[1] == 1:
            remedy = "repeat grey images: x.expand(-1, 3, -1, -1)"
        raise ShapeError(f"upscale: image must be a tensor [B, 3, H, W], got {shape}; {remedy}")
    if image.numel() == 0:
        raise ShapeError(f"upscale: image must have pixels, got {shape}; check how it was cut")
    if not image.is_floating_point():
        raise ShapeError(
            f"upscale: image must be a floating tensor in [0, 1], got {image.dtype}; divide bytes "
            "by 255"
        )
    _check_values(image)
    return image


def check_array(image: NDArray[Any]) -> NDArray[Any]:
    """``[H W]`` or ``[H W C]`` with 1 to 4 channels: uint8, uint16, or floating in [0, 1].

    Raises:
        ShapeError: Another layout, dtype or range; the message says what it looks like.
    """
    shape = list(image.shape)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4)):
        remedy = "pass an array [H, W] or [H, W, 1 to 4]"
        if image.ndim == 3 and image.shape[0] in (1, 3, 4):
            remedy = "it looks like [C, H, W]: use x.transpose(1, 2, 0)"
        elif image.ndim == 4:
            remedy = "arrays are single images: pass them one by one"
        raise ShapeError(f"upscale: image must be an array [H, W(, C)], got {shape}; {remedy}")
    if image.size == 0:
        raise ShapeError(f"upscale: image must have pixels, got {shape}; check how it was cut")
    if image.dtype in (np.uint8, np.uint16):
        return image
    if image.dtype.kind != "f":
        raise ShapeError(
            f"upscale: image must be uint8, uint16 or floating in [0, 1], got {image.dtype}; "
            "convert it"
        )
    _check_values(torch.from_numpy(np.ascontiguousarray(image)))
    return image


def _check_values(values: Tensor) -> None:
    bad = ~torch.isfinite(values)
    if bad.any():
        raise ShapeError(
            f"upscale: image must be finite, got {int(bad.sum())} NaN or infinite values, the "
            f"first at {bad.nonzero()[0].tolist()}; one of them would spoil every pixel of the "
            "result"
        )
    low, high = float(values.min()), float(values.max())
    if high > 2 or low < -1:
        raise ShapeError(
            f"upscale: image must be in [0, 1], got values from {low:g} to {high:g}; divide bytes "
            "by 255"
        )
