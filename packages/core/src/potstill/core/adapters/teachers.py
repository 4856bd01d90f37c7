"""Teachers by name: ``load_teacher("timm:vit_base_patch16_224")``.

A library is imported when it is named, so none of them is needed for the others.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.errors import BackendError, ConfigError, DataError, PotstillError, nearest
from potstill.core.images.files import Statistics
from potstill.core.vocabulary.output import TensorOutput

__all__ = ["Loaded", "load_teacher", "statistics_of"]


@dataclass
class Loaded:
    """A model, and what is known about it.

    Attributes:
        model: The model, in eval mode.
        statistics: Mean and standard deviation that its images are normalised with; None where
            they are unknown. `Renormalized` makes them of those of a student.
        origin: Source of the weights.
        licence: Licence of the weights as their source states it; empty where unknown.
    """

    model: Any
    statistics: Statistics | None
    origin: str
    licence: str = ""


def load_teacher(
    name: str,
    *,
    pretrained: bool = True,
    output: Callable[[Any], Tensor] | None = None,
    **options: Any,
) -> Loaded:
    """A model of another library, ready to teach: it returns one tensor.

    With ``HF_HUB_OFFLINE=1`` nothing is downloaded; what was downloaded before is used.

    Args:
        name: ``timm:vit_base_patch16_224.mae``; ``torchvision:resnet50``;
            ``transformers:google/vit-base-patch16-224`` or ``diffusers:google/ddpm-cat-256``, also
            with a folder instead of the name on the Hugging Face Hub.
        pretrained: False makes fresh weights.
        output: A function that takes the tensor out of what the model returns; see `tensor_of`,
            whose rules are used for transformers and diffusers.
        **options: More for the library: ``num_classes``, ``weights="IMAGENET1K_V1"``
            (torchvision), ``revision``, ``subfolder="unet"``, ``architecture="ViTModel"`` (a class
            of transformers; that of the checkpoint by default).

    Raises:
        ConfigError: The name has no known library.
        BackendError: The library is not installed.
        DataError: The library has no such model, or its weights cannot be downloaded.

    Example:
        >>> teacher = load_teacher("timm:resnet10t", pretrained=False, num_classes=10)
        >>> teacher.model(torch.zeros(1, 3, 64, 64)).shape, teacher.statistics[0]
        (torch.Size([1, 10]), (0.485, 0.456, 0.406))
    """
    library, _, inner = name.partition(":")
    if library not in _LOADERS or not inner:
        raise ConfigError(
            f"load_teacher: name must be <library>:<model> with a library of "
            f"{', '.join(_LOADERS)}, got {name!r}"
        )
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        raise BackendError(
            f"load_teacher: {name} needs {library}, which could not be imported ({error}); "
            f"pip install {library}"
        ) from error
    try:
        found = _LOADERS[library](module, inner, pretrained, options)
    except (PotstillError, TypeError, AttributeError):  # the latter: options that it does not take
        raise
    except Exception as error:  # no network, no such tag, a proxy: each library has its own
        if not pretrained:
            raise
        raise DataError(
            f"load_teacher: the weights of {inner} must be downloadable, got "
            f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}; "
            "download them elsewhere and give the file or the folder"
        ) from error
    found.model.eval()
    if not pretrained:
        found.origin, found.licence = f"{inner}, fresh weights", ""
    if output is not None or library in ("transformers", "diffusers"):
        found.model = TensorOutput(found.model, output)
    return found


def statistics_of(model: nn.Module) -> Statistics | None:
    """Mean and standard deviation of the images of a timm model; None where it does not say."""
    known = getattr(model, "pretrained_cfg", None) or {}
    return (tuple(known["mean"]), tuple(known["std"])) if {"mean", "std"} <= set(known) else None


def _timm(timm: Any, name: str, pretrained: bool, options: dict[str, Any]) -> Loaded:
    if ":" not in name and not timm.is_model(name):  # hf-hub: and local-dir: are timm's own
        known = timm.list_models() + timm.list_models(pretrained=True)
        raise _unknown("timm", name, known, "timm.list_models('vit*')")
    model = timm.create_model(name, pretrained=pretrained, **options)
    return Loaded(model, statistics_of(model), name, str(model.pretrained_cfg.get("license", "")))


def _torchvision(torchvision: Any, name: str, pretrained: bool, options: dict[str, Any]) -> Loaded:
    models, chosen = torchvision.models, options.pop("weights", "DEFAULT")
    if name not in models.list_models():
        raise _unknown(
            "torchvision", name, models.list_models(), "torchvision.models.list_models()"
        )
    choices = models.get_model_weights(name)
    if chosen not in choices.__members__:
        raise ConfigError(
            f"load_teacher: weights must be of {name}, got {chosen!r}; "
            f"{nearest(chosen, choices.__members__)}"
        )
    weights = choices[chosen]
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if pretrained and _offline() and not file.exists():
        raise DataError(
            f"load_teacher: HF_HUB_OFFLINE forbids to download the weights of {name}, and {file} "
            "does not exist; put them there"
        )
    model = models.get_model(name, weights=weights if pretrained else None, **options)
    preset = weights.transforms()  # detection and optical flow have other presets
    known = hasattr(preset, "mean") and hasattr(preset, "std")
    return Loaded(model, (tuple(preset.mean), tuple(preset.std)) if known else None, name)


def _transformers(library: Any, name: str, pretrained: bool, options: dict[str, Any]) -> Loaded:
    chosen = options.pop("architecture", None)
    config = library.AutoConfig.from_pretrained(name, **options)
    named = chosen or (config.architectures or ["AutoModel"])[0]
    if not hasattr(library, named):
        raise _unknown("transformers", named, dir(library), "dir(transformers)")
    kind = getattr(library, named)
    fresh = getattr(kind, "from_config", kind)  # the first is AutoModel's
    model = kind.from_pretrained(name, **options) if pretrained else fresh(config)
    try:
        about, _ = library.ImageProcessingMixin.get_image_processor_dict(name, **options)
    except OSError:  # models of text have none
        about = {}
    mean, std = about.get("image_mean"), about.get("image_std")
    known = about.get("do_normalize", True) and mean and std
    return Loaded(model, (tuple(mean), tuple(std)) if known else None, name)


def _diffusers(library: Any, name: str, pretrained: bool, options: dict[str, Any]) -> Loaded:
    config = library.AutoModel.load_config(name, **options)
    kind = getattr(library, config["_class_name"])
    model = kind.from_pretrained(name, **options) if pretrained else kind.from_config(config)
    return Loaded(model, None, name)


_LOADERS: dict[str, Callable[[Any, str, bool, dict[str, Any]], Loaded]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "diffusers": _diffusers,
}


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _unknown(library: str, name: str, known: Iterable[str], listing: str) -> DataError:
    guess = nearest(name, known)
    hint = guess if guess.startswith("did") else f"{listing} lists what there is"
    return DataError(f"load_teacher: {library} has no model {name!r}; {hint}")
