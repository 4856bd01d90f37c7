"""Models from names, files and folders: students to train, teachers to learn from."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from potstill.core import DataError, Pretrained
from potstill.core.store import root
from potstill.mae.autoencoder import MaskedAutoencoder
from potstill.mae.checkpoints import load_weights
from potstill.mae.config import Decoder, Encoder
from potstill.mae.data import IMAGENET
from potstill.mae.distiller import Normalization

__all__ = ["Loaded", "Student", "create_encoder", "load_model", "statistics_of"]

_log = logging.getLogger(__name__)


def create_encoder(encoder: Encoder, num_classes: int = 0, **options: Any) -> Any:
    """A timm model with fresh weights.

    Raises:
        UnknownModelError: timm knows no such name.
    """
    _require_known(encoder.name)
    model: Any = timm.create_model(
        encoder.name, num_classes=num_classes, **{**encoder.options(), **options}
    )
    if encoder.mean:
        model.pretrained_cfg = {
            **model.pretrained_cfg,
            "mean": encoder.mean,
            "std": encoder.std,
        }
    return model


class Student(
    MaskedAutoencoder,
    Pretrained,
    paper="Bai et al., Masked Autoencoders Enable Efficient Knowledge Distillers, CVPR 2023",
):
    """A :class:`MaskedAutoencoder` made by name, so that it can be saved as a folder.

    Args:
        encoder: The timm model.
        decoder: The decoder; depth 0 for none.
        fixed_positions: Use the fixed sine-cosine table during pre-training.

    Example:
        >>> small = Encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2)
        >>> student = Student(small, Decoder(depth=1, width=64))
        >>> student.export_student().num_classes
        0
    """

    def __init__(
        self,
        encoder: Encoder = Encoder(),  # noqa: B008  (frozen)
        decoder: Decoder = Decoder(),  # noqa: B008
        fixed_positions: bool = True,
    ) -> None:
        super().__init__(
            create_encoder(encoder), decoder.options(), fixed_positions=fixed_positions
        )


@dataclass
class Loaded:
    """A model with weights, and what is known about it.

    Attributes:
        model: A plain timm model without head.
        statistics: Mean and standard deviation of its input.
        origin: Where the weights came from.
        licence: Of the weights, as stated by their source; empty when unknown.
    """

    model: Any
    statistics: Normalization
    origin: str
    licence: str = ""


class UnknownModelError(DataError):
    """A name that timm does not know."""


def load_model(source: str, encoder: Encoder | None = None, *, pretrained: bool = True) -> Loaded:
    """A model with weights from a timm name, a run's folder, or a checkpoint file.

    Args:
        source: ``vit_base_patch16_224.mae`` and the like; a folder that ``save_pretrained`` or a
            run wrote; or a checkpoint (official MAE or DMAE, timm, safetensors). Beside a file, a
            ``.json`` of the same name may hold ``kwargs`` of ``VisionTransformer`` and ``mean``,
            ``std``.
        encoder: Architecture for a file that does not say it.
        pretrained: False makes a timm model with fresh weights, which teaches nothing: logged.

    Raises:
        DataError: Nothing there, a name that timm does not know, or weights that cannot be
            downloaded.
        CheckpointError: A checkpoint of another architecture.
    """
    path = _existing(source)
    if path is None:
        return _from_timm(source, encoder or Encoder(source), pretrained)
    if path.is_dir():
        return _from_folder(path)
    described = path.with_suffix(".json")
    if described.is_file():
        about = json.loads(described.read_text())
        from timm.models.vision_transformer import VisionTransformer

        model: nn.Module = VisionTransformer(**{**about["kwargs"], "num_classes": 0})
        statistics = tuple(about.get("mean", IMAGENET[0])), tuple(about.get("std", IMAGENET[1]))
    elif encoder is not None:
        model = create_encoder(encoder)
        statistics = statistics_of(model)
    else:
        raise DataError(
            f"load_model: the architecture of {path} must be known, got neither an encoder nor "
            f"{described.name} beside it; name the timm model"
        )
    load_weights(model, path)
    return Loaded(model, statistics, str(path))


def statistics_of(model: nn.Module) -> Normalization:
    """Mean and standard deviation that a timm model wants its images normalised with."""
    known: Any = getattr(model, "pretrained_cfg", None) or {}
    return tuple(known.get("mean", IMAGENET[0])), tuple(known.get("std", IMAGENET[1]))


def _existing(source: str) -> Path | None:
    """The path that ``source`` names, also below the data root; None for a name of timm."""
    for path in (Path(source), root() / source):
        if path.exists():
            return path
    if "/" in source or Path(source).suffix in (".pth", ".pt", ".safetensors"):
        raise DataError(
            f"load_model: {source} must exist, got nothing there nor below {root()}; check the "
            "path, or give the name of a timm model"
        )
    return None


def _from_timm(name: str, encoder: Encoder, pretrained: bool) -> Loaded:
    _require_known(name)
    options: dict[str, Any] = {**encoder.options(), "num_classes": 0}
    model: Any
    if not pretrained:
        model = timm.create_model(name, **options)
        _log.warning(
            "load_model: %s has fresh weights and teaches nothing; use pretrained=True", name
        )
        return Loaded(model, statistics_of(model), f"{name}, fresh weights")
    try:
        model = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # no network, no such tag, a proxy: each library has its own
        raise DataError(
            f"load_model: the weights of {name} must be downloadable, got "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; "
            "download them elsewhere and give the file"
        ) from error
    licence = str(model.pretrained_cfg.get("license", ""))
    if "nc" in licence.split("-"):
        _log.warning(
            "load_model: the weights of %s are %s, not for commercial use; augreg and DeiT "
            "teachers are Apache-2.0",
            name,
            licence,
        )
    return Loaded(model, statistics_of(model), name, licence)


def _from_folder(folder: Path) -> Loaded:
    inside = folder / "student"  # of a run
    student = Student.from_pretrained(inside if inside.is_dir() else folder)
    model = student.export_student()
    return Loaded(model, statistics_of(model), str(folder))


def _require_known(name: str) -> None:
    known = timm.list_models() + timm.list_models(pretrained=True)
    if name not in known and name.partition(".")[0] not in known:
        from potstill.core import nearest

        raise UnknownModelError(
            f"create_encoder: timm has no model {name!r}; {_close(nearest(name, known))}"
        )


def _close(guess: str) -> str:
    """Timm has over a thousand names: too many to list."""
    return guess if guess.startswith("did") else "timm.list_models('vit*') lists what there is"
