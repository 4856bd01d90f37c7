"""Images from folders and zip files, held in memory as bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from potstill.core import ConfigError, DataError, Files, generator

__all__ = ["CIFAR10", "IMAGENET", "Images", "Statistics", "load_images"]

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per channel, of values in [0, 1]."""

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262))

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")


@dataclass(frozen=True)
class Images:
    """A set of images of one size.

    Attributes:
        pixels: [images 3 height width], bytes.
        labels: Class of each, or -1 where there are no classes.
        names: File of each.
        classes: Names of the classes.
        statistics: What the model expects its input to be normalised with.
    """

    pixels: UInt8[Tensor, "images 3 height width"]
    labels: Int[Tensor, " images"]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    statistics: Statistics = IMAGENET

    def __len__(self) -> int:
        return len(self.pixels)

    def normalized(self, pixels: Tensor) -> Float[Tensor, "images 3 height width"]:
        """Bytes as the model expects them."""
        mean, std = (torch.tensor(values)[:, None, None] for values in self.statistics)
        return (pixels / 255 - mean) / std

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, normalised, with their labels; the last batch may be smaller."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.normalized(self.pixels[rows]), self.labels[rows]

    def split(self, share: float, seed: int = 0) -> tuple[Images, Images]:
        """Two disjoint random parts, the first with ``share`` of the images."""
        order = torch.randperm(len(self), generator=generator("split", seed))
        cut = round(share * len(self))
        return self.take(order[:cut]), self.take(order[cut:])

    def take(self, rows: Tensor) -> Images:
        """The images of some rows."""
        names = tuple(self.names[int(row)] for row in rows)
        return Images(self.pixels[rows], self.labels[rows], names, self.classes, self.statistics)

    def draws(
        self, size: int, seed: int = 0, augment: bool = True, shift: int = 4
    ) -> Callable[[int, int, int], tuple[Tensor, Tensor]]:
        """Random batches for `fit`: a pure function of (step, rank, world).

        Every epoch is a new permutation. Augmentation works on the batch at once: each image is
        shifted by up to ``shift`` pixels and flipped half of the time.

        Raises:
            ConfigError: A batch is larger than the set.
        """
        if not 1 <= size <= len(self):
            raise ConfigError(
                f"Images.draws: size must be from 1 to the {len(self)} images, got {size}"
            )

        def draw(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
            epoch, k = divmod(step, max(1, len(self) // (size * world)))
            order = torch.randperm(len(self), generator=generator("order", seed, epoch))
            rows = order[k * size * world :][rank : size * world : world]
            pixels = self.pixels[rows]
            if augment:
                pixels = _moved(pixels, shift, generator("augment", seed, step, rank))
            return self.normalized(pixels), self.labels[rows]

        return draw


def load_images(
    source: str | Path, *, size: int | None = None, statistics: Statistics = IMAGENET
) -> Images:
    """Read all images below a folder, or below a folder of a zip file, sorted by path.

    Where images lie in several folders, the folder's name is the class.

    Args:
        source: ``photos/`` or ``cifar10_10k.zip/cifar10/test``.
        size: Resize the shorter side to this and crop the centre square; needed when the images
            differ in size.
        statistics: Of the model that will see them.

    Raises:
        DataError: Nothing there, no image, or one that cannot be read.
        ConfigError: Images of several sizes, and no ``size``.
    """
    files = Files(source, _SUFFIXES)
    if not files:
        raise DataError(
            f"load_images: {source} must hold images ({', '.join(_SUFFIXES)}), got none"
        )
    arrays = []
    for name in files:
        try:
            image = Image.open(io.BytesIO(files.read(name))).convert("RGB")
        except (OSError, SyntaxError) as error:
            raise DataError(
                f"load_images: {name} in {source} must be a readable image, got: {error}; remove it"
            ) from error
        arrays.append(np.asarray(image if size is None else _square(image, size)))
    if len({array.shape for array in arrays}) > 1:
        raise ConfigError(
            f"load_images: the images of {source} must have one size, got several; pass size="
        )
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    folders = [PurePosixPath(name).parent.name for name in files]
    classes = tuple(sorted(set(folders))) if len(set(folders)) > 1 else ()
    labels = torch.tensor([classes.index(f) if classes else -1 for f in folders])
    return Images(pixels, labels, tuple(files), classes, statistics)


def _square(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _moved(pixels: Tensor, shift: int, rng: torch.Generator) -> Tensor:
    """Shift with zeros coming in, and flip; all images by one gather."""
    count, _, height, width = pixels.shape
    moves = torch.randint(-shift, shift + 1, (2, count, 1), generator=rng)
    rows = torch.arange(height) + moves[0] + shift
    columns = torch.arange(width) + moves[1] + shift
    flip = torch.rand(count, generator=rng) < 0.5
    columns[flip] = columns[flip].flip(1)
    padded = torch.nn.functional.pad(pixels, (shift,) * 4)
    each = torch.arange(count)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)
