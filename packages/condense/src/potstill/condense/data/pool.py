"""The images that are condensed: labelled, of one size, in memory as they came."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from potstill.core import ConfigError, DataError, fingerprint
from potstill.core.images import Statistics, load_images

__all__ = ["Pool", "load_pool"]


@dataclass(frozen=True)
class Pool:
    """Labelled images of one size.

    Attributes:
        pixels: [images channels height width], bytes, or floats in [0, 1].
        labels: Class of each, int64, 0 to the number of classes - 1; no class is empty.
        classes: Names of the classes.
        statistics: Mean and standard deviation per channel of values in [0, 1]: networks see
            normalised images.

    Raises:
        DataError: Another shape or type, floats outside [0, 1], labels that do not fit, or a class
            without images.

    Example:
        >>> pool = Pool.of([(torch.zeros(1, 4, 4), 0), (torch.ones(1, 4, 4), 1)])
        >>> pool.normalized(torch.tensor([1])).mean()
        tensor(1.)
    """

    pixels: Shaped[Tensor, "images channels height width"]
    labels: Int[Tensor, " images"]
    classes: tuple[str, ...]
    statistics: Statistics

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        if pixels.ndim != 4 or pixels.dtype not in (torch.uint8, torch.float32, torch.float64):
            raise DataError(
                "Pool: pixels must be bytes or floats [images channels height width], got "
                f"{pixels.dtype} {list(pixels.shape)}"
            )
        if pixels.is_floating_point() and not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise DataError(
                "Pool: floats must be in [0, 1], got values from "
                f"{float(pixels.min()):.3g} to {float(pixels.max()):.3g}; leave the normalisation "
                "out, it is part of the pool"
            )
        if labels.shape != pixels.shape[:1] or labels.dtype != torch.int64:
            raise DataError(
                f"Pool: labels must be int64 [{len(pixels)}], got {labels.dtype} "
                f"{list(labels.shape)}"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise DataError(
                f"Pool: labels must be from 0 to {len(self.classes) - 1}, got "
                f"{int(labels.min())} to {int(labels.max())}; number the classes without gaps"
            )
        for number in (self.counts == 0).nonzero()[:1].flatten().tolist():
            raise DataError(
                f"Pool: class {self.classes[number]!r} must have images, got none; remove the "
                "class, or number the classes without gaps"
            )

    @classmethod
    def of(
        cls,
        dataset: Any,
        classes: Sequence[str] | None = None,
        statistics: Statistics | None = None,
    ) -> Pool:
        """Read a map-style dataset of ``(image, class index)``, such as torchvision's.

        Args:
            dataset: Images as tensors [channels height width] (bytes, or floats in [0, 1]), or as
                PIL images.
            classes: Names of the classes; by default the dataset's ``classes``, else numbers.
            statistics: Mean and standard deviation; those of the images by default.

        Raises:
            DataError: An image of another size or another number of channels than the first, an
                item that is no pair, or what `Pool` refuses.
        """
        images: list[Tensor] = []
        labels: list[int] = []
        for index in range(len(dataset)):
            image, label = _item(dataset, index)
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"Pool: images must have one size and number of channels, got "
                    f"{list(images[0].shape)} and at {index} {list(image.shape)}; resize or "
                    "convert them first"
                )
            images.append(image)
            labels.append(int(label))
        if not images:
            raise DataError("Pool: the dataset must have items, got none")
        count = max(labels) + 1
        known = tuple(map(str, classes or getattr(dataset, "classes", None) or range(count)))
        pixels = torch.stack(images)
        return cls(pixels, torch.tensor(labels), known, statistics or moments(pixels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> torch.Size:
        """Channels, height and width."""
        return self.pixels.shape[1:]

    @cached_property
    def counts(self) -> Int[Tensor, " classes"]:
        """Number of images of each class."""
        return torch.bincount(self.labels, minlength=len(self.classes))

    def normalized(self, rows: Tensor) -> Float[Tensor, "rows channels height width"]:
        """The images of some rows, as networks see them."""
        pixels = self.pixels[rows]
        values = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        mean, deviation = (column.to(values) for column in self.affine)
        return (values - mean) / deviation

    @cached_property
    def affine(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, [channels 1 1] each."""
        mean, deviation = (torch.tensor(s)[:, None, None] for s in self.statistics)
        return mean, deviation

    def require(self, per_class: int, caller: str) -> None:
        """Refuse more images a class than there are.

        Raises:
            ConfigError: Names the smallest class and its count.
        """
        smallest = int(self.counts.argmin())
        if not 1 <= per_class <= int(self.counts[smallest]):
            raise ConfigError(
                f"{caller}: ipc must be from 1 to the {int(self.counts[smallest])} images of class "
                f"{self.classes[smallest]!r}, the smallest, got {per_class}; ask for fewer, or "
                "remove the class"
            )

    def digest(self) -> str:
        """A hash of pixels, labels and names."""
        return fingerprint(self.pixels.numpy(), self.labels.numpy(), list(self.classes))


def load_pool(
    source: str | os.PathLike[str],
    *,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    statistics: Statistics | None = None,
) -> Pool:
    """Read images in class folders below a folder or a ``.zip`` file, as ``ImageFolder`` does.

    Args:
        source: ``photos/`` or ``cifar10_10k.zip/cifar10/train``.
        size: Side of the centre square to which images are resized and cropped; needed when the
            images differ in size.
        classes: Names of the classes in their order, for images that are judged by networks of
            another set.
        statistics: Mean and standard deviation; those of the images by default.

    Raises:
        DataError: Nothing there, one class only, images without class folders, one that cannot be
            read.
        ConfigError: Images of several sizes, and no ``size``.
    """
    found = load_images(Path(source), size=size, classes=classes)
    if not found.classes:
        raise DataError(
            f"load_pool: {source} must hold a folder for each class, two at least; name the folder "
            "above the classes"
        )
    return Pool(found.pixels, found.labels, found.classes, statistics or moments(found.pixels))


def moments(pixels: Tensor) -> Statistics:
    """Mean and standard deviation per channel, of values in [0, 1]."""
    flat = pixels.double().transpose(0, 1).flatten(1) / (255 if pixels.dtype == torch.uint8 else 1)
    deviation = flat.std(1, correction=0)
    deviation[deviation == 0] = 1
    return tuple(flat.mean(1).tolist()), tuple(deviation.tolist())


def _item(dataset: Any, index: int) -> tuple[Tensor, Any]:
    item = dataset[index]
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise DataError(
            f"Pool: items must be (image, class index), got {type(item).__name__} at {index}"
        )
    image, label = item
    if not isinstance(image, Tensor):
        import numpy as np

        array = np.atleast_3d(np.asarray(image))
        image = torch.from_numpy(array.copy()).permute(2, 0, 1)
    if image.ndim != 3:
        raise DataError(
            f"Pool: images must be [channels height width], got {list(image.shape)} at {index}"
        )
    return image, label
