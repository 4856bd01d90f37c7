"""Images, and their augmentation by timm's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data import create_transform
from torch.utils.data import DataLoader

from potstill.core import ConfigError
from potstill.core.images import ImageSet, ResidentImages, Statistics, keyed
from potstill.mae.config import Data
from potstill.mae.models.students import channels_of, statistics_of

__all__ = [
    "ImageSet", "ResidentImages", "eval_transform", "held_out", "keyed", "require",
    "train_transform",
]  # fmt: skip


def train_transform(
    size: int | tuple[int, int], statistics: Statistics, *, strong: bool = False, erase: float = 0.0
) -> Any:
    """Random resized crop and flip; the light recipe of masked pre-training, or a strong one.

    Args:
        size: Side of the square result in pixels, or height and width.
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


def eval_transform(size: int | tuple[int, int], statistics: Statistics, crop: float = 0.875) -> Any:
    """Resize and centre crop, no randomness; ``size`` as of `train_transform`."""
    mean, std = statistics
    return create_transform(
        size, is_training=False, interpolation="bicubic", crop_pct=crop, mean=mean, std=std
    )


def held_out(
    source: str, vit: Any, batch: int = 128, classes: Sequence[str] | None = None
) -> DataLoader[Any]:
    """Labelled images as ``vit`` sees them at test time, in order; small ones are not cropped.

    Args:
        source: Folder or zip file.
        vit: A timm model.
        batch: Images at a time.
        classes: Those of the training images, by which these are numbered.

    Raises:
        DataError: A folder that is none of ``classes``.
    """
    images = ImageSet(source, labels=True, classes=classes, channels=channels_of(vit))
    size = tuple(vit.patch_embed.img_size)
    crop = 1.0 if max(size) <= 64 else 0.875
    images.transform = eval_transform(size, statistics_of(vit), crop)
    return DataLoader(images, batch)  # type: ignore[arg-type]  # any sequence will do


def require(data: Data, *parts: str) -> None:
    """Refuse a command that was not told where its images are.

    Raises:
        ConfigError: A part (``train`` or ``test``) is empty.
    """
    for part in parts:
        if not getattr(data, part):
            raise ConfigError(
                f"data.{part} must be a folder or zip file of images, got nothing; pass "
                f"--data.{part} PATH"
            )
