"""Kinds of images: a file, a picture, a PIL image, an array or a tensor gives the same kind."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from potstill.core import ConfigError
from potstill.sr.config import Alpha
from potstill.sr.images.filling import filled
from potstill.sr.images.picture import Picture, picture_of
from potstill.sr.images.reading import read_image
from potstill.sr.images.resize import imresize, lanczos
from potstill.sr.inference.checks import check_array, check_tensor
from potstill.sr.inference.planes import Planes, from_float, to_float

__all__ = ["Kinds"]


@dataclass(frozen=True)
class Kinds:
    """Takes any kind of image apart into colour and alpha, and gives the same kind back.

    Args:
        planes: Function that enlarges colour.
        alpha: Way in which transparency is enlarged.
        keep_hidden: Colour under clear pixels is enlarged as it is, else filled from the seen.
    """

    planes: Planes
    alpha: Alpha
    keep_hidden: bool = False

    def __post_init__(self) -> None:
        if self.alpha not in get_args(Alpha):
            raise ConfigError(
                f"upscale: alpha must be one of {', '.join(get_args(Alpha))}, got {self.alpha!r}"
            )

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
        """A picture with all that travels with it."""
        color, alpha = self._parts(picture.color, picture.alpha)
        return replace(picture, color=color, alpha=alpha)

    def array(self, array: NDArray[Any]) -> NDArray[Any]:
        """Arrays of 1 to 4 channels, with or without a channel axis."""
        planes = array[..., None] if array.ndim == 2 else array
        color = planes[..., : 1 if planes.shape[2] < 3 else 3]
        grey = color.shape[2] == 1
        color = np.repeat(color, 3, axis=2) if grey else np.ascontiguousarray(color)
        large, soft = self._parts(color, planes[..., -1] if planes.shape[2] in (2, 4) else None)
        large = large[..., :1] if grey else large
        large = large if soft is None else np.dstack([large, soft])
        return large[..., 0] if array.ndim == 2 else large

    def _parts(
        self, color: NDArray[Any], alpha: NDArray[Any] | None
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Colour and alpha: grey stays grey, what is clear lends its colour to nothing."""
        grey = all(np.array_equal(color[..., 0], color[..., c]) for c in (1, 2))
        if alpha is None:
            return self.planes(color, grey=grey), None
        dtype, share = alpha.dtype, to_float(alpha).clip(0, 1)
        if bool((share == 1).all()):
            large = self.planes(color, grey=grey)
            return large, from_float(np.ones(large.shape[:2], np.float32), dtype)
        values = to_float(color)
        if not self.keep_hidden:
            values = filled(values, share > 0)
        large = from_float(self.planes(values, grey=grey), dtype)
        return large, from_float(self._enlarged(share), dtype)

    def _enlarged(self, share: NDArray[np.float32]) -> NDArray[Any]:
        """Alpha in [0, 1]; opaque and clear areas stay exactly 1 and 0, but for "network"."""
        scale = self.planes.scale
        if self.alpha == "network":
            return self.planes(np.repeat(share[..., None], 3, axis=2), grey=True)[..., 0]
        if self.alpha == "lanczos":
            return lanczos(share, share.shape[1] * scale, share.shape[0] * scale).clip(0, 1)
        return imresize(share, scale).clip(0, 1)

    def tensor(self, tensor: Tensor) -> Tensor:
        """A batch, image by image: the statistics of attention are each image's own."""
        device, dtype = tensor.device, tensor.dtype
        planes = tensor.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        large = [torch.from_numpy(self.planes(np.ascontiguousarray(p), clip=False)) for p in planes]
        return torch.stack(large).permute(0, 3, 1, 2).to(device, dtype).contiguous()
