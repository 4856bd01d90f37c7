"""Kinds of images: a file, a picture, a PIL image, an array or a tensor gives the same kind."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from potstill.core import ConfigError
from potstill.sr.images.picture import Picture, picture_of
from potstill.sr.images.reading import read_image
from potstill.sr.images.resize import lanczos
from potstill.sr.inference.checks import check_array, check_tensor
from potstill.sr.inference.planes import Planes, from_float

__all__ = ["Kinds"]


@dataclass(frozen=True)
class Kinds:
    """Takes any kind of image apart into colour and alpha, and gives the same kind back.

    Args:
        planes: What enlarges colour.
        alpha: How transparency is enlarged; colour is premultiplied meanwhile.
    """

    planes: Planes
    alpha: Literal["lanczos", "network"]

    def __post_init__(self) -> None:
        if self.alpha not in ("lanczos", "network"):
            raise ConfigError(f"upscale: alpha must be lanczos or network, got {self.alpha!r}")

    def __call__(self, image: Any) -> Any:
        """Enlarge an image."""
        if isinstance(image, str | os.PathLike):
            return self.picture(read_image(image))
        if isinstance(image, Picture):
            return self.picture(image)
        if isinstance(image, Image.Image):
            return self.picture(picture_of(image)).to_pil()
        if isinstance(image, Tensor):
            return self.tensor(check_tensor(image))
        if isinstance(image, np.ndarray):
            return self.array(check_array(image))
        raise ConfigError(
            f"upscale: image must be a path, a PIL image, an array or a tensor, got "
            f"{type(image).__name__}"
        )

    def picture(self, picture: Picture) -> Picture:
        """Colour by the network; alpha apart, with the colour premultiplied by it."""
        alpha = picture.alpha
        if alpha is None:
            return replace(picture, color=self.planes(picture.color))
        peak = picture.peak
        if bool((alpha == peak).all()):
            color = self.planes(picture.color)
            return replace(picture, color=color, alpha=np.full(color.shape[:2], peak, alpha.dtype))
        share = alpha.astype(np.float32)[..., None] / peak
        large_color = self.planes(picture.color.astype(np.float32) / peak * share)
        if self.alpha == "network":
            large_alpha = self.planes(np.repeat(share, 3, axis=2)).mean(axis=2).clip(0, 1)
        else:
            large_alpha = _enlarged(share[..., 0], self.planes.scale)
        seen = np.maximum(large_alpha, 0.5 / peak)[..., None]
        color = np.where(large_alpha[..., None] > 0, large_color / seen, 0).clip(0, 1)
        color, large_alpha = (from_float(part, alpha.dtype) for part in (color, large_alpha))
        return replace(picture, color=color, alpha=large_alpha)

    def array(self, array: NDArray[Any]) -> NDArray[Any]:
        """Arrays of 1 to 4 channels, with or without a channel axis."""
        planes = array[..., None] if array.ndim == 2 else array
        color = planes[..., : 1 if planes.shape[2] < 3 else 3]
        alpha = planes[..., -1] if planes.shape[2] in (2, 4) else None
        kind: Literal["L", "RGB"] = "L" if color.shape[2] == 1 else "RGB"
        color = np.repeat(color, 3, axis=2) if kind == "L" else color
        if array.dtype.kind == "f":
            large = self.planes(np.ascontiguousarray(color))
            factor = self.planes.scale
            soft = None if alpha is None else _enlarged(alpha, factor).astype(array.dtype)
        else:
            made = self.picture(Picture(np.ascontiguousarray(color), alpha, kind))
            large, soft = made.color, made.alpha
        large = _grey(large) if kind == "L" else large
        large = large if soft is None else np.dstack([large, soft])
        return large[..., 0] if array.ndim == 2 else large

    def tensor(self, tensor: Tensor) -> Tensor:
        """A batch, image by image: the statistics of attention are each image's own."""
        device, dtype = tensor.device, tensor.dtype
        planes = tensor.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        large = [torch.from_numpy(self.planes(np.ascontiguousarray(p), clip=False)) for p in planes]
        return torch.stack(large).permute(0, 3, 1, 2).to(device, dtype).contiguous()


def _grey(color: NDArray[Any]) -> NDArray[Any]:
    """The channels of a replicated grey image, averaged: [H W 3] -> [H W 1]."""
    mean = color.mean(axis=2, keepdims=True)
    return (np.round(mean) if color.dtype.kind == "u" else mean).astype(color.dtype)


def _enlarged(plane: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """A plane in [0, 1] by Lanczos; opaque and clear areas stay exactly 1 and 0."""
    return lanczos(plane, plane.shape[1] * scale, plane.shape[0] * scale).clip(0, 1)
