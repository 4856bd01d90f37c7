"""Models from names, files and folders: students to train, teachers to learn from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import nn

from potstill.core import DataError, Pretrained, adapters, reading
from potstill.core.adapters import Loaded, load_teacher
from potstill.core.images import IMAGENET, Statistics
from potstill.core.store import root
from potstill.mae.checkpoints import load_weights
from potstill.mae.config import Decoder, Encoder
from potstill.mae.models.autoencoder import MaskedAutoencoder

__all__ = [
    "Loaded", "Student", "create_encoder", "given", "initial", "load_model", "statistics_of",
]  # fmt: skip

_log = logging.getLogger(__name__)


def create_encoder(encoder: Encoder, num_classes: int = 0, **options: Any) -> Any:
    """A timm model with fresh weights.

    Raises:
        DataError: timm knows no such name.
    """
    chosen = {"num_classes": num_classes, **encoder.options(), **options}
    name = encoder.name or "vit_small_patch16_224"
    model = load_teacher(f"timm:{name}", pretrained=False, **chosen).model.train()
    if encoder.mean:
        own = {"mean": encoder.mean, "std": encoder.std}
        model.pretrained_cfg = {**model.pretrained_cfg, **own}
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
        from timm.models.vision_transformer import VisionTransformer

        with reading(described, "the description of a vision transformer"):
            about = json.loads(described.read_text())
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


def initial(init: str, encoder: Encoder) -> Any:
    """The timm model that a command begins with: that of ``init``, or a fresh one."""
    return load_model(init, given(encoder)).model if init else create_encoder(encoder)


def given(encoder: Encoder) -> Encoder | None:
    """None where nothing was said: the source then says what the architecture is."""
    return None if encoder == Encoder() else encoder


def statistics_of(model: nn.Module) -> Statistics:
    """Mean and standard deviation that a timm model wants its images normalised with."""
    return adapters.statistics_of(model) or IMAGENET


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
    options: dict[str, Any] = {**encoder.options(), "num_classes": 0}
    loaded = load_teacher(f"timm:{name}", pretrained=pretrained, **options)
    if not pretrained:
        _log.warning(
            "load_model: %s has fresh weights and teaches nothing; use pretrained=True", name
        )
    if "nc" in loaded.licence.split("-"):
        _log.warning(
            "load_model: the weights of %s are %s, not for commercial use; augreg and DeiT "
            "teachers are Apache-2.0",
            name,
            loaded.licence,
        )
    return loaded


def _from_folder(folder: Path) -> Loaded:
    inside = folder / "student"  # of a run
    student = Student.from_pretrained(inside if inside.is_dir() else folder)
    model = student.export_student()
    return Loaded(model, statistics_of(model), str(folder))
