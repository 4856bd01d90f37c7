"""Images from folders and zip files, with or without classes, and their augmentation."""

from __future__ import annotations

import io
import logging
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from potstill.core import DataError, Files, generator
from potstill.core.store import root
from potstill.mae.distiller import Normalization

__all__ = [
    "IMAGENET",
    "ImageSet",
    "ResidentImages",
    "eval_transform",
    "image_path",
    "keyed",
    "train_transform",
]

_log = logging.getLogger(__name__)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageSet:
    """The images below a folder, or in a zip file, sorted by path.

    Pre-training needs no classes: any tree of images will do. With ``labels`` the name of the
    folder that an image lies in is its class. An image that cannot be read is replaced by the next
    readable one; ``corrupt`` counts them (per process) and each is logged once.

    Args:
        source: A folder, or a ``.zip`` file, optionally with a folder inside:
            ``cifar10_10k.zip/cifar10/train``.
        labels: Items are ``(image, class index)`` instead of images.
        transform: Applied to the image, a PIL image in RGB.

    Raises:
        DataError: Nothing there, no image in it, or no class folders although ``labels``.

    Example:
        >>> import tempfile
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
        self.files = Files(source, _SUFFIXES)
        self.names = list(self.files)
        if not self.names:
            raise DataError(
                f"ImageSet: {source} must hold images ({', '.join(_SUFFIXES)}), got none; "
                "name the folder above them"
            )
        folders = [Path(name).parent.name for name in self.names]
        self.classes = tuple(sorted(set(folders)))
        if labels and (len(self.classes) < 2 or any(Path(n).parent == Path() for n in self.names)):
            raise DataError(
                f"ImageSet: {source} must hold one folder per class when labels are wanted, got "
                f"{len(self.names)} images in {len(self.classes)} folder(s)"
            )
        number = {name: index for index, name in enumerate(self.classes)}
        self.targets = [number[folder] for folder in folders]
        self._bad: set[int] = set()

    @property
    def corrupt(self) -> int:
        """How many images this process could not read."""
        return len(self._bad)

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

    def _read(self, index: int) -> Image.Image | None:
        if index in self._bad:
            return None
        name = self.names[index]
        try:
            return Image.open(io.BytesIO(self.files.read(name))).convert("RGB")
        except (OSError, SyntaxError) as error:
            self._bad.add(index)
            _log.warning("ImageSet: %s cannot be read and is skipped: %s", name, error)
            return None


def image_path(source: str) -> Path:
    """``source`` itself where that exists, else below the data root (``POTSTILL_DATA``)."""
    path = Path(source)
    known = any(part.exists() for part in (path, *path.parents) if part.name)
    return path if known else root() / source


def train_transform(
    size: int, statistics: Normalization, *, strong: bool = False, erase: float = 0.0
) -> Any:
    """Random resized crop and flip; the light recipe of masked pre-training, or a strong one.

    Args:
        size: Side of the square result in pixels.
        statistics: Mean and standard deviation per channel.
        strong: The recipe of fine-tuning: crops from 8 %, RandAugment m9 with noise .5, erasing.
        erase: Chance of erasing a rectangle, with ``strong``.
    """
    mean, std = statistics
    policy: dict[str, Any] = {"color_jitter": None}
    if strong:
        policy |= {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": erase}
    return create_transform(
        size,
        is_training=True,
        scale=(0.08, 1.0) if strong else (0.2, 1.0),
        hflip=0.5,
        interpolation="bicubic",
        mean=mean,
        std=std,
        **policy,
    )


def eval_transform(size: int, statistics: Normalization, crop: float = 0.875) -> Any:
    """Resize and centre crop, no randomness."""
    mean, std = statistics
    return create_transform(
        size, is_training=False, interpolation="bicubic", crop_pct=crop, mean=mean, std=std
    )


def keyed(transform: Callable[[Any], Any]) -> Callable[[Any, torch.Generator], Any]:
    """Make ``augment(item, rng)`` for ``Batches`` of any random image transform.

    timm and torchvision draw from the global streams. Here these are set from ``rng`` for the time
    of the call and put back, so that an image's augmentation depends on nothing else.
    """

    def augment(item: Any, rng: torch.Generator) -> Any:
        image, *label = item if isinstance(item, tuple) else (item,)
        with _streams_from(rng):
            image = transform(image)
        return (image, *label) if label else image

    return augment


@contextmanager
def _streams_from(rng: torch.Generator) -> Iterator[None]:
    seed = int(torch.randint(2**31, (), generator=rng))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # the CPU's only: a GPU may be busy with this step
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (timm draws from the global stream)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


class ResidentImages:
    """A small set of equally large images held in memory, with a batch-wise shift and flip.

    Decoding and augmenting one image at a time would cost more than a step of a tiny student. An
    instance is a source of batches for ``fit``: a pure function of step, rank and seed.

    Args:
        images: [N C H W] uint8.
        targets: Class indices, int64 [N].
        batch_size: Images per process and step.
        statistics: Mean and standard deviation per channel.
        shift: Largest shift in pixels, both ways, over a mirrored border.
        seed: Of order and augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        batch_size: int,
        statistics: Normalization,
        *,
        shift: int = 4,
        seed: int = 0,
    ) -> None:
        if len(images) < batch_size:
            raise DataError(
                f"ResidentImages: {len(images)} images must fill a batch of {batch_size}; "
                "lower batch_size"
            )
        self.images, self.targets, self.batch_size = images, targets, batch_size
        self.shift, self.seed = shift, seed
        self._mean, self._std = (torch.tensor(v).view(1, -1, 1, 1) for v in statistics)

    @classmethod
    def of(
        cls, source: ImageSet, batch_size: int, statistics: Normalization, **options: Any
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
                "use Batches with train_transform instead"
            )
        images = torch.stack([pil_to_tensor(image) for image, _ in pairs])
        targets = torch.tensor([target for _, target in pairs])
        return cls(images, targets, batch_size, statistics, **options)

    def __len__(self) -> int:
        """Steps in an epoch of one process."""
        return len(self.images) // self.batch_size

    def normalized(self, images: Tensor) -> Tensor:
        """Uint8 images as the model wants them: float32, normalised."""
        return (images.float() / 255 - self._mean) / self._std

    def __call__(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Batch of ``step`` for ``rank``: normalised images and targets."""
        chunk = self.batch_size * world
        epoch, k = divmod(step, max(len(self.images) // chunk, 1))
        order = torch.randperm(len(self.images), generator=generator("order", self.seed, epoch))
        chosen = order[k * chunk : (k + 1) * chunk][rank::world]
        rng = generator("augment", self.seed, step, rank)
        images = self._shift_and_flip(self.images[chosen], rng)
        return self.normalized(images), self.targets[chosen]

    def _shift_and_flip(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Cut a window out of each mirrored image, some from right to left."""
        batch, _, height, width = images.shape
        down, right = torch.randint(-self.shift, self.shift + 1, (2, batch, 1), generator=rng)
        flip = torch.rand(batch, 1, generator=rng) < 0.5
        column = torch.arange(width).expand(batch, -1)
        rows = _mirrored(torch.arange(height) + down, height)
        columns = _mirrored(torch.where(flip, width - 1 - column, column) + right, width)
        pixel = rows[:, :, None] * width + columns[:, None, :]  # [B H W]
        index = pixel.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, index).view_as(images)


def _mirrored(index: Tensor, length: int) -> Tensor:
    """Indices outside [0, length) come back inside, as in a mirror at the border."""
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
