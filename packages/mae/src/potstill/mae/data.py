"""Images, and their augmentation by timm's transforms."""

from __future__ import annotations

from typing import Any

from timm.data import create_transform

from potstill.core.images import ImageSet, ResidentImages, Statistics, keyed

__all__ = ["ImageSet", "ResidentImages", "eval_transform", "keyed", "train_transform"]


def train_transform(
    size: int, statistics: Statistics, *, strong: bool = False, erase: float = 0.0
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


def eval_transform(size: int, statistics: Statistics, crop: float = 0.875) -> Any:
    """Resize and centre crop, no randomness."""
    mean, std = statistics
    return create_transform(
        size, is_training=False, interpolation="bicubic", crop_pct=crop, mean=mean, std=std
    )
