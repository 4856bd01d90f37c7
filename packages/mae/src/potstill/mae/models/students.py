"""Models from names, files and folders: students to train, teachers to learn from."""

from __future__ import annotations

import json
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from potstill.core import CheckpointError, ConfigError, DataError, Pretrained, adapters, reading
from potstill.core.adapters import Loaded, load_teacher
from potstill.core.images import IMAGENET, Statistics
from potstill.core.store import root
from potstill.mae.checkpoints import Weights, load_weights, read_weights
from potstill.mae.config import Decoder, Encoder
from potstill.mae.models.autoencoder import MaskedAutoencoder

__all__ = [
    "Loaded", "Student", "channels_of", "create_encoder", "described", "given", "initial",
    "load_model", "statistics_of",
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
    return _normalised(model, encoder.mean, encoder.std)


def _normalised(model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    """The model, which now says that its images are normalised so; as it was without numbers."""
    if mean:
        own = {"mean": tuple(mean), "std": tuple(std)}
        model.pretrained_cfg = {**(getattr(model, "pretrained_cfg", None) or {}), **own}
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
        self.named = encoder


def load_model(
    source: str, encoder: Encoder | None = None, *, pretrained: bool = True, head: bool = False
) -> Loaded:
    """A model with weights from a timm name, a folder, or a checkpoint file.

    The model says itself how its images are normalised: see `statistics_of`.

    Args:
        source: ``vit_base_patch16_224.mae`` and the like, ``hf-hub:owner/name``,
            ``local-dir:folder``; a folder that ``save_pretrained``, a run or timm wrote; or a
            checkpoint, as `read_weights` reads it. Beside a file, a ``.json`` of the same name may
            hold ``kwargs`` of ``VisionTransformer`` and ``mean``, ``std``.
        encoder: Architecture for a file that does not say it; for the others, what shall differ.
            Positions (and patches) of another size are interpolated where it names a size.
        pretrained: False makes a timm model with fresh weights, which teaches nothing: logged.
        head: Keep the head of a classifier.

    Raises:
        DataError: Nothing there, a name that timm does not know, or weights that cannot be
            downloaded.
        CheckpointError: A checkpoint of another architecture.
        ConfigError: ``encoder`` names another model than ``source``.
    """
    path = _existing(source)
    encoder = encoder or Encoder()
    if path is None:
        return _from_timm(source, encoder, pretrained, head)
    if path.is_dir():
        return _from_folder(path, encoder, head)
    weights = read_weights(path)
    classes = len(weights.encoder.get("head.bias", ())) if head else 0
    described = path.with_suffix(".json")
    if described.is_file():
        with reading(described, "the description of a vision transformer"):
            about = json.loads(described.read_text())
            options = {**about["kwargs"], **encoder.options(), "num_classes": classes}
            # The name whose defaults are those of the class.
            model = load_teacher("timm:vit_base_patch16_224", pretrained=False, **options).model
            mean, std = (about.get(k, v) for k, v in zip(("mean", "std"), IMAGENET, strict=True))
            _normalised(model, encoder.mean or mean, encoder.std or std)
            statistics_of(model)  # refuses what does not fit its channels
    elif encoder != Encoder():
        model = create_encoder(encoder, classes)
    else:
        raise DataError(
            f"load_model: the architecture of {path} must be known, got neither an encoder nor "
            f"{described.name} beside it; name the timm model"
        )
    with reading(path, "a checkpoint that fits", CheckpointError):
        load_weights(model, weights, resample=_sized(encoder))
    return Loaded(model, statistics_of(model), str(path))


def _sized(encoder: Encoder) -> bool:
    return bool(encoder.image_size or encoder.patch_size)


def initial(init: str, encoder: Encoder) -> Any:
    """The timm model that a command begins with: that of ``init``, or a fresh one."""
    return load_model(init, given(encoder)).model if init else create_encoder(encoder)


def given(encoder: Encoder) -> Encoder | None:
    """None where nothing was said: the source then says what the architecture is."""
    return None if encoder == Encoder() else encoder


def described(vit: Any) -> Encoder:
    """The architecture of a model that timm made, so that `create_encoder` makes another one."""
    mean, std = statistics_of(vit)
    embed = vit.patch_embed
    return Encoder(
        vit.pretrained_cfg["architecture"], image_size=embed.img_size[1], height=embed.img_size[0],
        patch_size=embed.patch_size[0], width=vit.embed_dim, depth=len(vit.blocks),
        heads=vit.blocks[0].attn.num_heads, channels=embed.proj.in_channels, pool=vit.global_pool,
        mean=mean, std=std,
    )  # fmt: skip


def statistics_of(model: nn.Module) -> Statistics:
    """Mean and standard deviation that a timm model wants its images normalised with.

    Of a model of grey images that knows those of colours only, it is their mean.

    Raises:
        ConfigError: A model of other channels that does not say its own.
    """
    mean, std = adapters.statistics_of(model) or IMAGENET
    channels = channels_of(model)
    if channels == 1 < len(mean):
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    if channels != len(mean):
        raise ConfigError(
            f"statistics_of: mean and std must be {channels} numbers, one per channel, got "
            f"{len(mean)}; name them: mean and std of Encoder"
        )
    return mean, std


def channels_of(model: Any) -> int:
    """Channels of the images of a timm model; 3 where it does not say."""
    embed = getattr(model, "patch_embed", None)
    return embed.proj.in_channels if embed is not None else getattr(model, "in_chans", 3)


def _existing(source: str) -> Path | None:
    """The path that ``source`` names, also below the data root; None for a name of timm."""
    if source.startswith(("hf-hub:", "local-dir:")):
        return None
    for path in (Path(source), root() / source):
        if path.exists():
            return path
    if "/" in source or Path(source).suffix in (".pth", ".pt", ".ckpt", ".safetensors"):
        raise DataError(
            f"load_model: {source} must exist, got nothing there nor below {root()}; check the "
            "path, or give the name of a timm model (hf-hub:owner/name for one of the Hub)"
        )
    return None


def _from_timm(name: str, encoder: Encoder, pretrained: bool, head: bool) -> Loaded:
    if encoder.name not in ("", name):
        raise ConfigError(
            f"load_model: encoder.name must be left out where the source is a timm model, got "
            f"{encoder.name!r} beside {name!r}"
        )
    options: dict[str, Any] = {**encoder.options(), **({} if head else {"num_classes": 0})}
    loaded = load_teacher(f"timm:{name}", pretrained=pretrained, **options)
    _normalised(loaded.model, encoder.mean, encoder.std)
    loaded.statistics = statistics_of(loaded.model)
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


def _from_folder(folder: Path, encoder: Encoder, head: bool) -> Loaded:
    """A run's student or classifier, a student that was saved, or a folder as timm writes it."""
    inside = next((folder / n for n in ("student", "classifier") if (folder / n).is_dir()), folder)
    config = inside / "config.json"
    with reading(config, "the configuration of a model"):
        of_timm = config.is_file() and "architecture" in json.loads(config.read_text())
    if of_timm:
        loaded = _from_timm(f"local-dir:{inside}", replace(encoder, name=""), True, head)
        return replace(loaded, origin=str(folder))
    student = Student.from_pretrained(inside)
    model = student.export_student()
    said = {f.name: value for f in fields(Encoder) if (value := getattr(encoder, f.name))}
    if said:
        model = create_encoder(replace(student.named, **said))
        load_weights(model, Weights.of(student.encoder.vit), resample=_sized(encoder))
    return Loaded(model, statistics_of(model), str(folder))
