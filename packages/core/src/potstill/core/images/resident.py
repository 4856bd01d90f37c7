"""Images held in memory as bytes, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from potstill.core.engine.batches import Batches, Shard
from potstill.core.engine.signature import sketch
from potstill.core.errors import ConfigError, DataError
from potstill.core.images.files import IMAGENET, ImageSet, Statistics, normalize
from potstill.core.seed import generator

__all__ = ["Images", "ResidentImages", "load_images"]


class ResidentImages(Batches):
    """Equally large images in memory, with a shift and a flip of the whole batch at once.

    Decoding and augmenting one image at a time would cost more than a step of a tiny student. The
    order is that of ``Batches``; a batch is a pure function of seed, step, rank and world.

    Args:
        images: [N C H W], uint8; or floats, which are used as they are.
        targets: Class indices, int64 [N].
        batch_size: Images per process and step.
        statistics: Mean and standard deviation per channel, for uint8 images.
        shift: Largest shift in pixels, both ways.
        flip: Mirror half of the images from left to right.
        border: Content of the pixels that a shift uncovers.
        seed: Seed of order and augmentation; the run's by default.

    Raises:
        DataError: Fewer images than a batch takes.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        batch_size: int,
        statistics: Statistics = IMAGENET,
        *,
        shift: int = 4,
        flip: bool = True,
        border: Literal["mirror", "zero"] = "mirror",
        seed: int | None = None,
    ) -> None:
        if len(images) < batch_size:
            raise DataError(
                f"ResidentImages: {len(images)} images must fill a batch of {batch_size}; "
                "lower batch_size"
            )
        super().__init__(range(len(images)), batch_size)
        self.images, self.targets, self.statistics = images, targets, statistics
        self.shift, self.flip, self.border, self.seed = shift, flip, border, seed

    @classmethod
    def of(
        cls, source: ImageSet, batch_size: int, statistics: Statistics, **options: Any
    ) -> ResidentImages:
        """Decode all of ``source``.

        Raises:
            DataError: The images differ in size.
        """
        plain = [source[index] for index in range(len(source))]
        pairs = plain if source.labels else [(image, -1) for image in plain]
        sizes = {image.size for image, _ in pairs}
        if len(sizes) > 1:
            raise DataError(
                f"ResidentImages: images must have one size, got {sorted(sizes)[:4]}; "
                "use Batches with a transform instead"
            )
        targets = torch.tensor([target for _, target in pairs])
        return cls(
            _bytes([image for image, _ in pairs]), targets, batch_size, statistics, **options
        )

    def normalized(self, images: Tensor) -> Tensor:
        """Images as the model wants them."""
        return images if images.is_floating_point() else normalize(images, self.statistics)

    def __call__(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Batch of ``step`` for ``rank``: normalised images and targets."""
        return next(self.stream(step, Shard(0, rank, world)))

    def indices(self, step: int, shard: Shard) -> list[int]:
        """Rows of the batch of ``step``."""
        return super().indices(step, self._seeded(shard))

    def stream(self, start: int, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from step ``start`` on, without end."""
        seed = self._seeded(shard).seed
        for step in count(start):
            rows = torch.tensor(self.indices(step, shard))
            rng = generator("augment", seed, step, 0)
            images = self._shift_and_flip(self.images[rows], rng, shard)
            yield self.normalized(images), self.targets[rows]

    def fingerprint(self) -> str:
        """Number of images, and a digest of a sample of them, the targets and the options."""
        options = self.statistics, self.shift, self.flip, self.border, self.seed
        return f"{len(self.images)} images {sketch(self.images, self.targets, options)}"

    def _seeded(self, shard: Shard) -> Shard:
        return shard if self.seed is None else shard._replace(seed=self.seed)

    def _shift_and_flip(
        self,
        images: Tensor,
        rng: torch.Generator,
        shard: Shard = Shard(),  # noqa: B008
    ) -> Tensor:
        """Cut a window out of each image with its border, some from right to left.

        Drawn for the batches of all processes, so that they do together what one would do.
        """
        batch, channels, height, width = images.shape
        mine, total = slice(shard.rank, None, shard.world), batch * shard.world
        down, right = torch.randint(-self.shift, self.shift + 1, (2, total, 1), generator=rng)[
            :, mine
        ]
        flipped = torch.rand(total, 1, generator=rng)[mine] < (0.5 if self.flip else 0.0)
        column = torch.arange(width).expand(batch, -1)
        rows = torch.arange(height) + down
        columns = torch.where(flipped, width - 1 - column, column) + right
        if self.border == "zero":
            images = F.pad(images, (self.shift,) * 4)
            rows, columns = rows + self.shift, columns + self.shift
        else:
            rows, columns = _mirrored(rows, height), _mirrored(columns, width)
        pixel = rows[:, :, None] * images.shape[-1] + columns[:, None, :]  # [B H W]
        index = pixel.flatten(1)[:, None].expand(-1, channels, -1)
        return images.flatten(2).gather(2, index).view(batch, channels, height, width)


@dataclass(frozen=True)
class Images:
    """A set of images of one size.

    Attributes:
        pixels: [images 3 height width], bytes.
        labels: Class of each, or -1 where there are no classes.
        names: File of each.
        classes: Names of the classes.
        statistics: Mean and standard deviation that the model expects of its input.
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
        return normalize(pixels, self.statistics)

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
        self, size: int, seed: int | None = None, augment: bool = True, shift: int = 4
    ) -> ResidentImages:
        """Random batches for `fit`, shifted over a black border and flipped where ``augment``.

        Raises:
            ConfigError: A batch is larger than the set.
        """
        if not 1 <= size <= len(self):
            raise ConfigError(
                f"Images.draws: size must be from 1 to the {len(self)} images, got {size}"
            )
        moves: Any = {"shift": shift if augment else 0, "flip": augment, "border": "zero"}
        return ResidentImages(self.pixels, self.labels, size, self.statistics, seed=seed, **moves)


def load_images(
    source: str | Path,
    *,
    size: int | None = None,
    statistics: Statistics = IMAGENET,
    classes: Sequence[str] | None = None,
) -> Images:
    """Read all images below a folder, or below a folder of a zip file, sorted by path.

    Where images lie in several folders, the name of the first one below ``source`` is the class.

    Args:
        source: ``photos/`` or ``cifar10_10k.zip/cifar10/test``.
        size: Side of the centre square to which images are resized and cropped; needed when the
            images differ in size.
        statistics: Mean and standard deviation that the model expects of its input.
        classes: Names of the classes in their order, e.g. those of the training images.

    Raises:
        DataError: Nothing there, no image, one that cannot be read, or a folder that is none of
            ``classes``.
        ConfigError: Images of several sizes, and no ``size``.
    """
    found = ImageSet(source, classes=classes)
    images = [_square(found[index], size) for index in range(len(found))]
    if found.broken:
        name, error = next(iter(found.broken.items()))
        raise DataError(
            f"load_images: {name} in {source} must be a readable image, got: {error}; remove it"
        )
    one = images[0].size
    for name, image in zip(found.names, images, strict=True):
        if image.size != one:
            raise ConfigError(
                f"load_images: the images of {source} must have one size, got {one[0]} x {one[1]} "
                f"({found.names[0]}) and {image.width} x {image.height} ({name}); pass size="
            )
    known = found.classes if len(found.classes) > 1 else ()
    labels = torch.tensor(found.targets if known else [-1] * len(found))
    return Images(_bytes(images), labels, tuple(found.names), known, statistics)


def _bytes(images: list[Any]) -> Tensor:
    """PIL images of one size as [N C H W]."""
    arrays = np.stack([np.asarray(image) for image in images])
    arrays = arrays[..., None] if arrays.ndim == 3 else arrays  # grey
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def _square(image: Any, size: int | None) -> Any:
    from PIL import Image

    if size is None:
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _mirrored(index: Tensor, length: int) -> Tensor:
    """Indices outside [0, length) come back inside, as in a mirror at the border."""
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
