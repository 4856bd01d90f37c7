"""Images of the commands: streamed from where they lie, in the form that the model expects."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from potstill.acm.config import Augment, BatchConfig, DistillConfig, ImageConfig
from potstill.core import Batches, ConfigError
from potstill.core.adapters import statistics_of
from potstill.core.images import CIFAR10, IMAGENET, ImageSet, Statistics, keyed

__all__ = [
    "classes_of", "eval_transform", "held_out", "image_size", "pixels_of", "statistics",
    "train_batches", "train_transform",
]  # fmt: skip


def image_size(model: Any) -> int:
    """Side in pixels of the images that a timm model takes."""
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or (model.pretrained_cfg["input_size"][-1],)
    return int(size[-1])


def classes_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the classes that ``model`` was trained on, in the order of its head, if known."""
    known: tuple[str, ...] = getattr(model, "acm_classes", ())
    return known


def statistics(images: ImageConfig, model: nn.Module) -> Statistics:
    """Mean and standard deviation that ``images`` are normalised with: the model's, or given ones.

    Raises:
        ConfigError: The model does not say, and neither does the configuration.
    """
    named = {"cifar10": CIFAR10, "imagenet": IMAGENET}.get(images.statistics)
    found = (images.mean, images.std) if images.mean else named or statistics_of(model)
    if found is None:
        raise ConfigError(
            f"acm: the mean and standard deviation of a {type(model).__name__}'s images must be "
            "known, got none from pretrained_cfg; pass --mean and --std"
        )
    return found


def eval_transform(model: Any, numbers: Statistics) -> Any:
    """Resize and centre crop as timm evaluates the model; another image size is not cropped."""
    size, known = image_size(model), model.pretrained_cfg or {}
    own = size == (known.get("input_size") or [0])[-1]
    return create_transform(
        size, crop_pct=known.get("crop_pct", 1.0) if own else 1.0, mean=numbers[0], std=numbers[1],
        interpolation=known.get("interpolation", "bicubic"),
    )  # fmt: skip


def train_transform(model: Any, numbers: Statistics, augment: Augment) -> Any:
    """Crops, or the whole square moved by some pixels; then timm's augmentation.

    Args:
        model: A timm model, for the size.
        numbers: Mean and standard deviation for normalising.
        augment: Options.
    """
    size, whole = image_size(model), augment.scale == (1.0, 1.0)
    policy: Any = {"color_jitter": augment.color_jitter or None}  # None: no draw at all
    rest = create_transform(
        size, is_training=True, scale=augment.scale, ratio=(1.0, 1.0) if whole else augment.ratio,
        hflip=augment.hflip, auto_augment=augment.auto_augment or None, re_prob=augment.erase,
        interpolation="bicubic", mean=numbers[0], std=numbers[1], **policy,
    )  # fmt: skip
    if not whole:
        return rest
    square = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
    moved = transforms.RandomCrop(size, padding=augment.shift)
    return transforms.Compose([square, transforms.CenterCrop(size), moved, rest])


def train_batches(config: DistillConfig, model: Any, labels: bool) -> Batches:
    """Random batches of augmented images, decoded as they are needed.

    Args:
        config: Images, augmentation, batch and workers.
        model: A timm model; its classes, where known, number the folders.
        labels: Batches of (images, labels) instead of images.

    Raises:
        DataError: Nothing is there, or a folder that is no class of the model.
        ConfigError: The model's head has not one output for each folder.
    """
    known = classes_of(model) if labels else ()
    images = ImageSet(config.images.data, labels=labels, classes=known or None)
    if labels and len(images.classes) != model.num_classes:
        raise ConfigError(
            f"distill: the model must have one output for each of the {len(images.classes)} class "
            f"folders of {config.images.data}, got {model.num_classes}; make it with potstill acm "
            f"convert --classes {len(images.classes)}, or pass --finetune.epochs 0"
        )
    transform = train_transform(model, statistics(config.images, model), config.augment)
    training = config.training
    return Batches(images, training.batch, workers=training.workers, augment=keyed(transform))


def held_out(
    images: BatchConfig, model: Any, *, limit: int | None = None, labels: bool = True
) -> DataLoader[Any]:
    """Images in order, as ``model`` sees them at test time, with labels where there are classes.

    Args:
        images: Images, their batches and workers.
        model: A timm model; its classes, where known, number the folders.
        limit: Largest number of images, taken at equal distances; all by default.
        labels: Give labels; where they cannot be told, a warning says so and there are none.

    Raises:
        DataError: Nothing is there, or a folder that is no class of the model.
    """
    found, known = ImageSet(images.data), classes_of(model)
    folders = found.classes
    if labels and "" not in folders and (known or len(folders) > 1):
        if known or len(folders) == model.num_classes:
            found = ImageSet(images.data, labels=True, classes=known or None)
        else:
            warnings.warn(
                f"accuracy is left out: {images.data} has {len(folders)} class folders, the model "
                f"{model.num_classes} outputs, and whose they are is not known",
                stacklevel=2,
            )
    found.transform = eval_transform(model, statistics(images, model))
    step = max(1, len(found) // limit) if limit else 1
    rows = range(len(found))[::step][:limit]
    chosen: Subset[Any] = Subset(found, rows)  # type: ignore[arg-type]  # any sequence will do
    return DataLoader(chosen, images.batch, num_workers=images.workers)


def pixels_of(images: Tensor, numbers: Statistics) -> Tensor:
    """Normalised images as bytes again, [... C H W]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in numbers)
    return (255 * (images.cpu() * std + mean)).round().clamp(0, 255).byte()
