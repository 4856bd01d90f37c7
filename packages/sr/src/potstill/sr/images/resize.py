"""Bicubic resizing as MATLAB's ``imresize`` does it: what all published tables rest on."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from potstill.core import ConfigError, ShapeError

__all__ = ["cubic", "imresize", "lanczos", "reduced"]

Array = TypeVar("Array", NDArray[np.uint8], NDArray[np.generic], Tensor)


def cubic(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic kernel with a = -0.5, zero outside [-2, 2].

    Source: Keys, "Cubic Convolution Interpolation for Digital Image Processing", IEEE TASSP 1981,
    Eq. (15).

    Example:
        >>> cubic(np.array([0.0, 0.5, 1.0, 1.5]))
        array([ 1.    ,  0.5625,  0.    , -0.0625])
    """
    t = np.abs(t)
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t <= 2, far, 0.0))


def imresize(image: Array, scale: float | Fraction) -> Array:
    """Resize by a factor, with antialiasing when shrinking, exactly as MATLAB's bicubic.

    Two separable passes, rows first. Images of bytes (or 16-bit) are rounded half up and clipped
    after *each* pass, as MATLAB does: with that every published low-resolution image is reproduced
    sample by sample. Floating images are neither rounded nor clipped. At borders the image is
    mirrored, edge pixel included.

    Args:
        image: Array ``[H W]`` or ``[H W C]``, or tensor ``[... H W]``; uint8, uint16 or floating.
        scale: The factor, > 0: ``1/3`` gives images of ``ceil(H/3) x ceil(W/3)``. A fraction such
            as ``Fraction(1, 3)`` and the float nearest to it mean the same.

    Returns:
        An array of the same kind and dtype; float64 arithmetic inside.

    Raises:
        ConfigError: ``scale`` is not positive.
        ShapeError: An empty image, other axes, or another dtype.

    Example:
        >>> imresize(np.full((7, 9, 3), 200, np.uint8), 1 / 2).shape
        (4, 5, 3)
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise ConfigError(f"imresize: scale must be positive, got {scale}; 1/2 halves an image")
    ratio = Fraction(scale).limit_denominator(10_000)
    values: NDArray[Any]
    if isinstance(image, Tensor):
        values = image.detach().cpu().numpy()
        axes = (values.ndim - 2, values.ndim - 1)
    else:
        values, axes = image, (0, 1)
    if values.ndim < 2 or values.size == 0 or (values is image and values.ndim > 3):
        raise ShapeError(
            f"imresize: image must be an array [H, W(, C)] or a tensor [..., H, W], got "
            f"{list(values.shape)}; move the axes"
        )
    if values.dtype not in (np.uint8, np.uint16) and values.dtype.kind != "f":
        raise ShapeError(
            f"imresize: image must be uint8, uint16 or floating, got {values.dtype}; convert it"
        )
    dtype = values.dtype
    for axis in axes:
        values = _pass(values, ratio, axis)
        if dtype.kind == "u":
            values = np.clip(np.floor(values + 0.5), 0, 255 if dtype == np.uint8 else 65535)
    values = values.astype(dtype)
    return torch.from_numpy(values).to(image.device) if isinstance(image, Tensor) else values


def reduced(image: NDArray[np.uint8], scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image shrunk by ``scale``, and the image itself cropped to a multiple of it."""
    h, w = (side - side % scale for side in image.shape[:2])
    image = np.ascontiguousarray(image[:h, :w])
    return imresize(image, Fraction(1, scale)), image


def lanczos(plane: NDArray[Any], width: int, height: int) -> NDArray[np.float32]:
    """A plane [H W] at another size, in float32; overshoots are left as they are."""
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def _pass(values: NDArray[np.generic], ratio: Fraction, axis: int) -> NDArray[np.float64]:
    """Weighted sums along ``axis``: a tap at a time, so that memory stays at one image."""
    weights, indices = _taps(values.shape[axis], ratio)
    shape = [1] * values.ndim
    shape[axis] = -1
    total: NDArray[np.float64] | None = None
    for weight, index in zip(weights.T, indices.T, strict=True):
        part = np.take(values, index, axis).astype(np.float64)
        part *= weight.reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


@lru_cache(maxsize=64)
def _taps(size: int, ratio: Fraction) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Weights and source indices of every output sample: two arrays [out taps]."""
    scale = float(ratio)
    outputs = math.ceil(ratio * size)
    shrink = min(scale, 1.0)
    width = 4.0 / shrink
    centre = np.arange(1, outputs + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centre - width / 2)
    positions = first[:, None] + np.arange(math.ceil(width) + 2)
    weights = shrink * cubic(shrink * (centre[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    mirror = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    indices = mirror[(positions.astype(np.intp) - 1) % (2 * size)]
    used = (weights != 0).any(axis=0)
    return weights[:, used], indices[:, used]
