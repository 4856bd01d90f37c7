"""Adaptive models as folders: weights, and all that is needed to build the model again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from typing import Any

import timm
import torch
from torch import Tensor, nn

from potstill.acm.layers.module import acms, phases, require_acms, set_mode
from potstill.acm.layers.surgery import ModuleSpec, acmize, install, specs
from potstill.core import CheckpointError, ConfigError, Pretrained
from potstill.core.command import build

__all__ = ["AdaptiveModel", "create_model", "from_pretrained", "load_into", "save_pretrained"]


class AdaptiveModel(
    nn.Module,
    Pretrained,
    paper="Wójcik et al., Adaptive Computation Modules, AAAI 2025 (arXiv 2312.10193)",
):
    """A timm model with adaptive modules, as a folder holds it.

    Args:
        architecture: Name for ``timm.create_model``.
        options: Its further arguments.
        modules: Fields of a `ModuleSpec` for each adaptive module by path.
        phases: Phases that the model has been through.
        budget: Mean budget the gates were trained or calibrated for.
        classes: Names of the classes in the order of the head, where they are known.
        modes: Mode of each adaptive module by path; gated where none is named.
    """

    def __init__(
        self,
        architecture: str,
        options: dict[str, Any] | None = None,
        modules: dict[str, Any] | None = None,
        phases: tuple[str, ...] = (),
        budget: float | None = None,
        classes: tuple[str, ...] = (),
        modes: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = timm.create_model(architecture, pretrained=False, **(options or {}))
        given = modules or {}
        install(self.model, {path: build(ModuleSpec, given[path], path) for path in given})
        if modes:
            set_mode(self.model, {**dict.fromkeys(given, "gated"), **modes})
        about: Any = self.model
        about.acm_phases = tuple(phases)
        about.acm_budget = budget
        about.acm_classes = tuple(classes)
        about.acm_origin = (architecture, options or {})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The timm model's."""
        return self.model(*args, **kwargs)


def create_model(
    architecture: str,
    *,
    acm: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """``timm.create_model``, adaptive.

    Args:
        architecture: Name of a timm model.
        acm: Arguments of `acmize`.
        pretrained: Start from timm's weights.
        **options: Further arguments of ``timm.create_model``; plain values, so that
            `save_pretrained` can write them.

    Example:
        >>> model = create_model("vit_tiny_patch16_224", acm=dict(learners=2), depth=1)
        >>> model.blocks[0].mlp.count
        2
    """
    dense: Any = timm.create_model(architecture, pretrained=pretrained, **options)
    dense.acm_origin = (architecture, options)
    return acmize(dense, **dict(acm or {}))


def save_pretrained(
    model: nn.Module,
    folder: str | PathLike[str],
    *,
    architecture: str | None = None,
    options: Mapping[str, Any] | None = None,
    budget: float | None = None,
    **card: Any,
) -> None:
    """Write an adaptive model as a folder: ``model.safetensors``, ``config.json``, a card.

    Args:
        model: Adaptive model; the tilt of calibration is among the weights, and its modes are kept.
        folder: Made when missing.
        architecture: Name for ``timm.create_model``; by default what the model was created as.
        options: Its further arguments, when it was not made by `create_model`.
        budget: Budget of its gates; by default as trained or calibrated.
        **card: Of `Pretrained.save_pretrained`: ``teacher=``, ``metrics=``.

    Raises:
        ConfigError: Nothing is adaptive, or timm's name for the model is not known.
    """
    require_acms(model, "save_pretrained")
    name, kwargs = _origin(model) if architecture is None else (architecture, dict(options or {}))
    modules = {path: asdict(spec) for path, spec in specs(model).items()}
    budget = getattr(model, "acm_budget", None) if budget is None else budget
    try:
        classes = getattr(model, "acm_classes", ())
        modes = {path: acm.mode for path, acm in acms(model).items() if acm.mode != "gated"}
        shell = AdaptiveModel(name, kwargs, modules, phases(model), budget, classes, modes)
        shell.model.load_state_dict(model.state_dict())
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"save_pretrained: architecture and options must build this model again, got "
            f"{name!r} with {kwargs}: {error}; pass architecture= and options="
        ) from error
    shell.save_pretrained(folder, **card)


def from_pretrained(
    folder: str | PathLike[str], *, backend: str = "auto", **options: Any
) -> nn.Module:
    """The timm model with adaptive modules that `save_pretrained` wrote, in eval mode.

    Args:
        folder: A folder, or a repository of the Hub.
        backend: Name of a backend; see `potstill.acm.backends`.
        **options: Of `Pretrained.from_pretrained`: ``map_location=``, ``revision=``, ...

    Raises:
        DataError: Nothing is there.
        CheckpointError: It is damaged or does not fit itself.
    """
    model: nn.Module = AdaptiveModel.from_pretrained(folder, **options).model
    for acm in require_acms(model, "from_pretrained").values():
        acm.backend = backend
    return model


def load_into(model: nn.Module, folder: str | PathLike[str]) -> nn.Module:
    """Fill an adaptive model from a folder that was written for one built alike.

    Raises:
        CheckpointError: The folder's modules have other learners or widths; names the first.
    """
    mine, other = specs(model), from_pretrained(folder)
    theirs = specs(other)
    for path in dict.fromkeys([*mine, *theirs]):
        if mine.get(path) != theirs.get(path):
            raise CheckpointError(
                f"load_into: {path!r} must be built as in {folder}, which has "
                f"{_shape(theirs.get(path))}, got {_shape(mine.get(path))}; use from_pretrained"
            )
    with torch.no_grad():
        model.load_state_dict(other.state_dict())
    return model


def _shape(spec: ModuleSpec | None) -> str:
    if spec is None:
        return "no adaptive module"
    return f"{len(spec.bounds) - 1} learners of {spec.bounds[1]} units and a gate of {spec.gate}"


def _origin(model: nn.Module) -> tuple[str, dict[str, Any]]:
    origin: Any = getattr(model, "acm_origin", None)
    if origin is not None:
        return origin[0], dict(origin[1])
    known: Any = getattr(model, "pretrained_cfg", None) or {}
    name = known.get("architecture") if isinstance(known, Mapping) else None
    if not name:
        raise ConfigError(
            f"save_pretrained: architecture must be timm's name of the model, got a "
            f"{type(model).__name__} without; pass architecture= and options="
        )
    return name, {"num_classes": model.num_classes}
