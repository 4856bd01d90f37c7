"""Images in folders, archives and tables, decoded one at a time, and what models expect of them."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import ConfigError, DataError, nearest
from potstill.core.images.containers import SUFFIXES, contained
from potstill.core.seed import seeded
from potstill.core.store.data import root

__all__ = ["CIFAR10", "IMAGENET", "ImageSet", "Statistics", "image_path", "keyed", "normalize"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of values in [0, 1]."""

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262))

_log = logging.getLogger(__name__)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of PIL, by channels
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")  # PostScript runs a program


class ImageSet:
    """The images below a folder, in an archive, a table or a list.

    With ``labels`` the first folder below ``source`` is the class of an image, as in torchvision's
    ``ImageFolder``; without, any tree of images will do. Tar files are read as webdataset writes
    them, ``a.cls`` beside ``a.jpg``; tables have a column of images and one of classes; a list has
    a path in each line, and a class after a tab (``.csv``: a comma).

    Hidden files are no images. An image that cannot be read is replaced by the next readable one;
    ``corrupt`` counts them (per process) and each is logged once; files of other kinds are counted
    in the log. 16-bit grey becomes 8-bit. A set can be pickled, so that worker processes can read
    it.

    Args:
        source: A folder, or a ``.zip`` file, optionally with a folder inside:
            ``cifar10_10k.zip/cifar10/train``; a ``.tar`` or ``.parquet`` file, a folder or a
            pattern of them (``train-*.tar``); what ``save_to_disk`` of Hugging Face ``datasets``
            wrote (tables need the extra ``potstill-core[tables]``); or a list, ``.txt``,
            ``.csv`` or ``.tsv``. Found as `image_path` says.
        labels: Items are ``(image, class index)`` instead of images.
        transform: Applied to the image, a PIL image in RGB, or as ``channels`` says.
        classes: Names of the classes in their order, for a set that is judged by a model of another
            one; the folders that are there, sorted, by default.
        channels: 1 for grey images, 3 for RGB, 4 for RGB and opacity.

    Raises:
        DataError: Nothing there, no image in it, no class folders although ``labels``, or folders
            that are none of ``classes``.
        ConfigError: Another number of channels.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8)).save(f"{folder}/any-name.png")
        ...     len(ImageSet(folder))
        1
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        labels: bool = False,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
        channels: int = 3,
    ) -> None:
        if channels not in _MODES:
            raise ConfigError(f"ImageSet: channels must be 1, 3 or 4, got {channels}")
        self.transform, self.labels, self.channels = transform, labels, channels
        self.source, self.held = str(source), contained(image_path(source))
        self.names, folders = self.held.names, self.held.folders
        if self.held.others:
            _log.info("ImageSet: %d files of %s are not images", self.held.others, source)
        if not self.names:
            raise DataError(
                f"ImageSet: {source} must hold images ({', '.join(SUFFIXES)}), got none; "
                "name the folder above them"
            )
        found = list(self.held.classes) or sorted(set(folders))
        if labels and (len(found) < (1 if classes else 2) or "" in found):
            raise DataError(
                f"ImageSet: {source} must hold one folder per class when labels are wanted, got "
                f"{len(self.names)} images in {len(found)} folder(s); "
                "name the folder above the classes"
            )
        self.classes = tuple(classes or found)
        if strange := sorted(set(found) - set(self.classes)):
            raise DataError(
                f"ImageSet: the folders of {source} must be classes of the training images, got "
                f"{', '.join(map(repr, strange[:5]))}; {nearest(strange[0], self.classes)}"
            )
        number = {name: index for index, name in enumerate(self.classes)}
        self.targets = [number[folder] for folder in folders]
        self.broken: dict[str, str] = {}  # names of images that cannot be read, and why

    @property
    def corrupt(self) -> int:
        """Number of images that this process could not read."""
        return len(self.broken)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        for offset in range(len(self)):
            at = (index + offset) % len(self)
            image = self._read(at)
            if image is not None:
                image = self.transform(image) if self.transform else image
                return (image, self.targets[at]) if self.labels else image
        first = next(iter(self.broken), "")
        raise DataError(
            f"ImageSet: none of the {len(self)} images of {self.source} can be read; "
            f"{first}: {self.broken.get(first)}"
        )

    def _read(self, index: int) -> Any:
        from PIL import Image

        name = self.names[index]
        if name in self.broken:
            return None
        try:
            opened = Image.open(io.BytesIO(self.held.read(index)), formats=_FORMATS)
            return _converted(opened, _MODES[self.channels])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            self.broken[name] = str(error)
            _log.warning("ImageSet: %s cannot be read and is skipped: %s", name, error)
            return None


def _converted(image: Any, mode: str) -> Any:
    """A PIL image in RGB or another mode; PIL itself would cut 16-bit grey at 255, to white.

    Raises:
        ValueError: Values of 32 bits that are not those of 16: their range is not known.
    """
    from PIL import Image

    if image.mode != "F" and not image.mode.startswith("I"):
        return image.convert(mode)
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65_535:
        raise ValueError(
            f"{image.mode} values from {values.min()} to {values.max()} have no known range; "
            "convert the file to 8 or 16 bits"
        )
    return Image.fromarray((values / 257).round().astype(np.uint8)).convert(mode)


def image_path(source: str | os.PathLike[str]) -> Path:
    """``source`` itself where that exists, else below the data root (``POTSTILL_DATA``)."""
    path = Path(source)
    known = any(part.exists() for part in (path, *path.parents) if part.name)
    return path if known else root() / path


def keyed(transform: Callable[[Any], Any]) -> Callable[[Any, torch.Generator], Any]:
    """Make ``augment(item, rng)`` for ``Batches`` of any random image transform.

    timm and torchvision draw from the global streams. Here these are set from ``rng`` for the time
    of the call and put back, so that an image's augmentation depends on nothing else. What comes
    back can be pickled where ``transform`` can: worker processes that are spawned need that.
    """
    return partial(_augment, transform)


def _augment(transform: Callable[[Any], Any], item: Any, rng: torch.Generator) -> Any:
    image, *label = item if isinstance(item, tuple) else (item,)
    with seeded(int(torch.randint(2**31, (), generator=rng))):
        image = transform(image)
    return (image, *label) if label else image


def normalize(pixels: Tensor, statistics: Statistics) -> Tensor:
    """Bytes ``[... C H W]`` as float32 of mean 0 and standard deviation 1."""
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in statistics)
    return (pixels.float() / 255 - mean) / std
