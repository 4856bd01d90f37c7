"""Folders of the commands: an adaptive model, and its dense teacher beside it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import load_state_dict
from torch import Tensor, nn

from potstill.acm.config import ConvertConfig
from potstill.acm.layers.budget import costs
from potstill.acm.layers.module import acms
from potstill.acm.layers.surgery import acmize
from potstill.acm.store.images import image_size
from potstill.acm.store.pretrained import from_pretrained, save_pretrained
from potstill.core import ConfigError, DataError, atomic, reading

__all__ = [
    "convert", "dense_model", "example_images", "has_teacher", "save_with_teacher", "teacher_of",
]  # fmt: skip

_DENSE = "dense.safetensors"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def convert(config: ConvertConfig, out: Path) -> dict[str, Any]:
    """Write an adaptive model, and the dense one beside it as the teacher of the phases.

    Args:
        config: Dense model, and how it becomes adaptive.
        out: Folder, made when missing.

    Returns:
        Number of modules, and multiply-adds of an image.

    Raises:
        ConfigError: timm does not know the model, or a weight does not fit; all of `acmize`.
        DataError: The checkpoint is missing or damaged.
    """
    about = _described(config.checkpoint)
    options = {**about.get("kwargs", {}), **config.options()}
    if "mean" in about and "std" in about and not config.mean:
        options["pretrained_cfg_overlay"] = {"mean": about["mean"], "std": about["std"]}
    dense = dense_model(config.model, options, config.pretrained)
    if len(classes := tuple(about.get("classes", ()))) == dense.num_classes:
        dense.acm_classes = classes
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
    size = image_size(adaptive)
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


def save_with_teacher(
    student: nn.Module, folder: Path, source: Path, budget: float | None = None
) -> None:
    """Write ``student`` to ``folder``, and the teacher of ``source`` where it has one.

    Args:
        student: Adaptive model.
        folder: Made when missing.
        source: Folder that ``student`` came from.
        budget: Mean budget that its gates aim at; as before by default.
    """
    save_pretrained(student, folder, budget=budget)
    if has_teacher(source):
        with atomic(folder / _DENSE) as temporary:
            temporary.write_bytes((source / _DENSE).read_bytes())


def example_images(model: nn.Module, size: int | None = None) -> Tensor:
    """Two images of noise in the size that ``model`` takes, or in another one; [2 3 size size]."""
    side = size or image_size(model)
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def _load(model: Any, path: Path) -> None:
    """Weights of the official files, of timm and of ours; positions are fitted to the grid.

    Raises:
        DataError: The file is missing or damaged, or needs code to load.
        ConfigError: A weight does not fit.
    """
    if path.suffix not in _SUFFIXES or not path.is_file():
        raise DataError(
            f"acm: checkpoint must be a file that ends in {', '.join(_SUFFIXES)}, got {path}"
        )
    with reading(path, "a whole checkpoint that loads without running code"):
        # Official files carry their command line; a namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = load_state_dict(str(path))
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise DataError(f"acm: checkpoint {path} must hold tensors by name")
    fitted = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        model.load_state_dict(fitted(state, model) if fitted else state)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"acm: checkpoint must fit the model, got {reason}; check size, patch, width, depth, "
            "heads, classes (0 for files without a head) and pool"
        ) from error


def _described(checkpoint: Path | None) -> dict[str, Any]:
    """What the .json beside a checkpoint says: arguments of the model, classes, statistics."""
    path = checkpoint and checkpoint.with_suffix(".json")
    if path is None or not path.is_file():
        return {}
    with reading(path, "the description of a checkpoint"):
        about = json.loads(path.read_text(encoding="utf-8"))
        known = {"kwargs": dict, "classes": list, "mean": list, "std": list}
        return {name: kind(about[name]) for name, kind in known.items() if name in about}
