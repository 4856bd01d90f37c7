"""Photos, masks and depth maps of a scene, of any sizes, reduced by any factor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from potstill.core import DataError, reading

__all__ = ["SUFFIXES", "find_photo", "read_depth", "read_mask", "read_photos"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def find_photo(path: Path) -> Path | None:
    """The file of that name, which may leave out the suffix of an image."""
    known = (s for suffix in SUFFIXES for s in (suffix, suffix.upper()))
    names = (path, *(path.with_name(path.name + suffix) for suffix in known))
    return next((name for name in names if name.is_file()), None)


def read_photos(paths: Sequence[Path], factor: float = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images as bytes [V H W C], their sizes [V 2] now, and those of the files.

    Smaller ones lie at the top left of a canvas of the largest size. Alpha is premultiplied while
    averaging, so that invisible pixels do not bleed; images without it are opaque among others.

    Raises:
        DataError: A file is damaged, or its pixels are floating or 32-bit numbers.
    """
    images, files = [], []
    for path in paths:
        image = torch.from_numpy(_read(path))
        files.append((image.shape[1], image.shape[0]))
        images.append(image if factor == 1 else _reduce(image, factor))
    sizes = torch.tensor([(image.shape[1], image.shape[0]) for image in images])
    channels = max(image.shape[2] for image in images)
    width, height = sizes.amax(0).tolist()
    stack = torch.full((len(images), height, width, channels), 255, dtype=torch.uint8)
    for place, image in zip(stack, images, strict=True):
        place[: image.shape[0], : image.shape[1], : image.shape[2]] = image
    return stack, sizes, torch.tensor(files)


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """Booleans [H W]: where a mask image is not black, in every pixel that is averaged.

    Raises:
        DataError: The file is missing or damaged, or has another aspect.
    """
    from PIL import Image

    with reading(path, "a mask image"), Image.open(path) as image:
        _same_aspect(path, image.size, size)
        dark = torch.from_numpy(np.asarray(image.convert("L")) == 0)
    width, height = size
    shrunk = torch.nn.functional.adaptive_max_pool2d(dark[None].float(), (height, width))
    return shrunk[0] == 0


def read_depth(path: Path, size: tuple[int, int], unit: float) -> Tensor:
    """A depth map [H W] out of a 16-bit image or a NumPy array, in ``unit``; 0 is unknown.

    Raises:
        DataError: The file is missing or damaged, or has another aspect.
    """
    from PIL import Image

    with reading(path, "a depth map: a 16-bit grey image, or .npy [H, W]"):
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False).astype(np.float32)
        else:
            with Image.open(path) as image:
                if image.mode not in ("I;16", "I;16B", "I", "F"):
                    raise DataError(f"{path} must have 16-bit depths, got mode {image.mode}")
                values = np.asarray(image).astype(np.float32)
        values = np.squeeze(values)
        height, width = values.shape
        _same_aspect(path, (width, height), size)
    depth = torch.from_numpy(np.nan_to_num(values, posinf=0, neginf=0))[None, None] * unit
    nearest = torch.nn.functional.interpolate(depth, (size[1], size[0]), mode="nearest-exact")
    return nearest[0, 0].clamp(min=0)


def _read(path: Path) -> np.ndarray:
    """Bytes [H W 3], or [H W 4] where any kind of transparency is declared."""
    from PIL import Image

    with reading(path, "an image"), Image.open(path) as image:
        if image.mode in ("I;16", "I;16B", "I"):  # 16-bit grey, which PIL would clip
            grey = np.asarray(image).astype(np.int64)
            if grey.min() < 0 or grey.max() > 65535:
                raise DataError(f"{path} must have at most 16 bits, got up to {grey.max()}")
            return np.repeat((grey[..., None] / 257).round().astype(np.uint8), 3, axis=2)
        if image.mode == "F":
            raise DataError(f"{path} must hold bytes, got floating numbers; convert it first")
        return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _reduce(image: Tensor, factor: float) -> Tensor:
    height, width = (max(round(side / factor), 1) for side in image.shape[:2])
    pixels = image.float().permute(2, 0, 1)
    if len(pixels) == 4:
        pixels = torch.cat([pixels[:3] * pixels[3:] / 255, pixels[3:]])
    pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, (height, width))
    if len(pixels) == 4:
        pixels = torch.cat([pixels[:3] * 255 / pixels[3:].clamp(min=1e-3), pixels[3:]])
    return pixels.clamp(0, 255).round().byte().permute(1, 2, 0).contiguous()


def _same_aspect(path: Path, got: tuple[int, int], size: tuple[int, int]) -> None:
    if abs(got[0] * size[1] - got[1] * size[0]) > max(*got, *size):  # a pixel of rounding
        raise DataError(
            f"{path} must have the aspect of its photo, got {got[0]} x {got[1]} for one of "
            f"{size[0]} x {size[1]}"
        )
