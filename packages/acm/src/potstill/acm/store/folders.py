"""Folders of the commands: an adaptive model, and its dense teacher beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.acm.config import ConvertConfig, ImageConfig
from potstill.acm.images import CIFAR10, IMAGENET, Images, load_images
from potstill.acm.layers.budget import costs
from potstill.acm.layers.module import acms
from potstill.acm.layers.surgery import acmize
from potstill.acm.store.pretrained import from_pretrained, save_pretrained
from potstill.core import ConfigError, DataError, atomic, reading

__all__ = [
    "convert", "dense_model", "example_images", "has_teacher", "image_size", "read_images",
    "save_with_teacher", "teacher_of",
]  # fmt: skip

_DENSE = "dense.safetensors"


def convert(config: ConvertConfig, out: Path) -> dict[str, Any]:
    """Write an adaptive model, and the dense one beside it as the teacher of the phases.

    Args:
        config: Dense model, and how it becomes adaptive.
        out: Folder, made when missing.

    Returns:
        Number of modules, and multiply-adds of an image.

    Raises:
        ConfigError: timm does not know the model, or a weight does not fit; all of `acmize`.
        DataError: The checkpoint is missing.
    """
    options = config.options()
    dense = dense_model(config.model, options, config.pretrained)
    if config.checkpoint is not None:
        _load(dense, config.checkpoint)
    dense.acm_origin = (config.model, options)
    adaptive = acmize(
        dense,
        config.targets,
        config.learners,
        flops_factor=config.flops_factor,
        initial=config.initial,
    )
    save_pretrained(adaptive, out)
    with atomic(out / _DENSE) as temporary:
        save_file({k: v.contiguous() for k, v in dense.state_dict().items()}, temporary)
    size = config.size or image_size(adaptive)
    count = costs(adaptive, torch.zeros(1, 3, size, size))
    return {
        "modules": len(acms(adaptive)),
        "dense MMACs": count.dense / 1e6,
        "gates MMACs": count.gates / 1e6,
        "MMACs at budget 0.5": count.at(0.5) / 1e6,
    }


def dense_model(name: str, options: dict[str, Any], pretrained: bool = False) -> Any:
    """The timm model called ``name``.

    Raises:
        ConfigError: timm cannot create it.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"acm: model must be one that timm can create, got {error}") from error


def has_teacher(folder: Path) -> bool:
    """Whether the dense model lies in ``folder``."""
    return (folder / _DENSE).is_file()


def teacher_of(folder: Path) -> nn.Module:
    """The dense model of a folder that `convert` wrote, in eval mode.

    Raises:
        DataError: There is none.
    """
    if not has_teacher(folder):
        raise DataError(
            f"acm: {folder} must hold {_DENSE}, got none; potstill acm convert writes it"
        )
    origin: Any = from_pretrained(folder)
    dense: nn.Module = dense_model(*origin.acm_origin)
    _load(dense, folder / _DENSE)
    return dense.eval()


def save_with_teacher(student: nn.Module, folder: Path, source: Path, budget: float) -> None:
    """Write ``student`` to ``folder``, and the teacher of ``source`` where it has one.

    Args:
        student: Adaptive model.
        folder: Made when missing.
        source: Folder that ``student`` came from.
        budget: Mean budget that its gates aim at.
    """
    save_pretrained(student, folder, budget=budget)
    if has_teacher(source):
        with atomic(folder / _DENSE) as temporary:
            temporary.write_bytes((source / _DENSE).read_bytes())


def image_size(model: Any) -> int:
    """Side in pixels of the images that a timm model takes."""
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or (model.pretrained_cfg["input_size"][-1],)
    return int(size[-1])


def example_images(model: nn.Module, size: int | None = None) -> Tensor:
    """Two images of noise in the size that ``model`` takes, or in another one; [2 3 size size]."""
    side = size or image_size(model)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def read_images(images: ImageConfig, model: nn.Module, limit: int | None = None) -> Images:
    """The images of a configuration, in the size that ``model`` takes.

    Args:
        images: Where they are.
        model: A timm model.
        limit: Largest number of them, taken at equal distances; all by default.

    Raises:
        DataError: Nothing is there.
    """
    statistics = CIFAR10 if images.statistics == "cifar10" else IMAGENET
    every = load_images(images.data, size=image_size(model), statistics=statistics)
    if limit is None:
        return every
    return every.take(torch.arange(0, len(every), max(1, len(every) // limit))[:limit])


def _load(model: nn.Module, path: Path) -> None:
    if path.suffix != ".safetensors" or not path.is_file():
        raise DataError(f"acm: checkpoint must be a .safetensors file, got {path}")
    with reading(path, "a whole safetensors file"):
        state = load_file(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"acm: checkpoint must fit the model, got {reason}; check size, patch, width, depth, "
            "heads, classes and pool"
        ) from error
