"""Images in folders and zip files, decoded one at a time, and what models expect of them."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import DataError
from potstill.core.files import Files
from potstill.core.seed import seeded
from potstill.core.store.data import root

__all__ = ["CIFAR10", "IMAGENET", "ImageSet", "Statistics", "image_path", "keyed", "normalize"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of values in [0, 1]."""

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262))

_log = logging.getLogger(__name__)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")


class ImageSet:
    """The images below a folder, or in a zip file, sorted by path.

    With ``labels`` the name of the folder that an image lies in is its class; without, any tree of
    images will do. An image that cannot be read is replaced by the next readable one; ``corrupt``
    counts them (per process) and each is logged once. A set can be pickled, so that worker
    processes can read it.

    Args:
        source: A folder, or a ``.zip`` file, optionally with a folder inside:
            ``cifar10_10k.zip/cifar10/train``; found as `image_path` says.
        labels: Items are ``(image, class index)`` instead of images.
        transform: Applied to the image, a PIL image in RGB.

    Raises:
        DataError: Nothing there, no image in it, or no class folders although ``labels``.

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
    ) -> None:
        self.transform, self.labels = transform, labels
        self.files = Files(image_path(source), _SUFFIXES)
        self.names = list(self.files)
        if not self.names:
            raise DataError(
                f"ImageSet: {source} must hold images ({', '.join(_SUFFIXES)}), got none; "
                "name the folder above them"
            )
        parents = [PurePosixPath(name).parent for name in self.names]
        self.classes = tuple(sorted({parent.name for parent in parents}))
        if labels and (len(self.classes) < 2 or PurePosixPath() in parents):
            raise DataError(
                f"ImageSet: {source} must hold one folder per class when labels are wanted, got "
                f"{len(self.names)} images in {len(self.classes)} folder(s)"
            )
        number = {name: index for index, name in enumerate(self.classes)}
        self.targets = [number[parent.name] for parent in parents]
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
        raise DataError(f"ImageSet: none of the {len(self)} images can be read")

    def _read(self, index: int) -> Any:
        from PIL import Image

        name = self.names[index]
        if name in self.broken:
            return None
        try:
            return Image.open(io.BytesIO(self.files.read(name))).convert("RGB")
        except (OSError, SyntaxError) as error:
            self.broken[name] = str(error)
            _log.warning("ImageSet: %s cannot be read and is skipped: %s", name, error)
            return None


def image_path(source: str | os.PathLike[str]) -> Path:
    """``source`` itself where that exists, else below the data root (``POTSTILL_DATA``)."""
    path = Path(source)
    known = any(part.exists() for part in (path, *path.parents) if part.name)
    return path if known else root() / path


def keyed(transform: Callable[[Any], Any]) -> Callable[[Any, torch.Generator], Any]:
    """Make ``augment(item, rng)`` for ``Batches`` of any random image transform.

    timm and torchvision draw from the global streams. Here these are set from ``rng`` for the time
    of the call and put back, so that an image's augmentation depends on nothing else.
    """

    def augment(item: Any, rng: torch.Generator) -> Any:
        image, *label = item if isinstance(item, tuple) else (item,)
        with seeded(int(torch.randint(2**31, (), generator=rng))):
            image = transform(image)
        return (image, *label) if label else image

    return augment


def normalize(pixels: Tensor, statistics: Statistics) -> Tensor:
    """Bytes ``[... C H W]`` as float32 of mean 0 and standard deviation 1."""
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in statistics)
    return (pixels.float() / 255 - mean) / std
