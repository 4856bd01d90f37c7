"""Checkpoints: official MAE and DMAE, timm, and safetensors, both ways and bit for bit.

Read are also DINO, DINOv2, DINOv3, Lightning and others that hold a vision transformer below some
prefix; their names become timm's by timm's own filters.

=============  =======================================================================
``mae``        ``.pth``: ``{"model": ...}``, encoder named as in timm, ``decoder_*``
``dmae``       the same with ``aligned_feature_projection_heads.N.*``
``timm``       ``.pth`` or ``.safetensors``: the encoder alone, as ``create_model`` reads it
``potstill``   ``.safetensors``: encoder, decoder and projectors, with a description
=============  =======================================================================

Loading executes nothing: safetensors, or ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import inspect
import io
import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from potstill.core import CheckpointError, ConfigError, atomic, nearest, reading, staging

__all__ = ["Format", "Weights", "load_weights", "read_weights", "write_folder", "write_weights"]

Format = Literal["mae", "dmae", "timm", "potstill"]

_DECODER = {
    "embed": "decoder_embed",
    "positions": "decoder_pos_embed",
    "blocks": "decoder_blocks",
    "norm": "decoder_norm",
    "head": "decoder_pred",
    "mask_token": "mask_token",
}
_HEADS = "aligned_feature_projection_heads."
_HOLDERS = ("model", "state_dict", "model_ema", "teacher")  # of a file's weights, in this order

_log = logging.getLogger(__name__)


@dataclass
class Weights:
    """The parts of a checkpoint, each under our own names.

    Attributes:
        encoder: State of the timm model.
        decoder: State of :class:`PatchDecoder`; empty when there is none.
        projectors: States of the projectors, one per aligned layer in increasing order.
        form: The format that was read.
        extra: Other content of the file (epoch, metadata); never optimiser states.
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor] = field(default_factory=dict)
    projectors: list[dict[str, Tensor]] = field(default_factory=list)
    form: Format = "timm"
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: nn.Module) -> Weights:
        """The weights of a distiller, a student, or a timm model."""
        vit, decoder, projectors = _parts(source)
        return cls(
            _state(vit),
            {} if decoder is None else _state(decoder),
            [_state(projector) for projector in projectors.values()],
        )


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a checkpoint; which format it has is recognised by its content.

    Where a file holds several models (DINO: student and teacher), the teacher is read.

    Raises:
        CheckpointError: The file is missing, damaged, needs code to load, or holds no vision
            transformer.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"read_weights: {path} must be a file, got nothing there")
    if path.suffix == ".safetensors":
        state, extra = _read_safetensors(path)
    else:
        state, extra = _read_pickle(path)
    weights = _sort(state)
    weights.extra = extra
    if not any(name.startswith("blocks.0.") for name in weights.encoder):
        some = ", ".join(list(state)[:4]) or "nothing"
        raise CheckpointError(
            f"read_weights: {path} must hold a vision transformer (blocks.0. ...), got {some}"
        )
    return weights


def write_weights(
    source: nn.Module | Weights,
    path: str | os.PathLike[str],
    form: Format = "potstill",
    *,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """Write weights in one of the four formats, whole or not at all.

    Args:
        source: A distiller, a student, a timm model, or :class:`Weights`.
        path: ``.safetensors`` for ``timm`` and ``potstill``; ``.pth`` for ``mae``, ``dmae``, and
            also ``timm``.
        form: The format.
        description: Stored as metadata with ``potstill`` (student, teacher, layers, recipe).

    Raises:
        ConfigError: Unknown format, a suffix that does not fit, or a projector that the format
            cannot hold.
    """
    path = Path(path)
    if form not in get_args(Format):
        raise ConfigError(
            f"write_weights: form must be one of {', '.join(get_args(Format))}, got {form!r}; "
            f"{nearest(str(form), get_args(Format))}"
        )
    fitting = {
        "mae": (".pth", ".pt"),
        "dmae": (".pth", ".pt"),
        "timm": (".safetensors", ".pth", ".pt"),
        "potstill": (".safetensors",),
    }[form]
    if path.suffix not in fitting:
        raise ConfigError(
            f"write_weights: path must end in {' or '.join(fitting)} for {form}, got {path.name}"
        )
    weights = source if isinstance(source, Weights) else Weights.of(source)
    state = _join(weights, form)
    with atomic(path) as temporary:
        if path.suffix == ".safetensors":
            whole = {name: value.contiguous() for name, value in state.items()}
            extra = {k: json.dumps(v) for k, v in (description or {}).items()}
            save_file(whole, temporary, metadata={"format": "pt", "potstill": form, **extra})
        else:
            torch.save(state if form == "timm" else {"model": state}, temporary)
    return path


def write_folder(
    vit: nn.Module, folder: str | os.PathLike[str], classes: Sequence[str] = ()
) -> Path:
    """Write a timm model as a folder for ``timm.create_model("local-dir:...", pretrained=True)``.

    It holds weights, architecture, sizes, head and the statistics of the images; `load_model`
    reads it too.

    Args:
        vit: A model that ``timm.create_model`` made.
        folder: Made when missing.
        classes: Names of the classes, for the configuration.

    Raises:
        ConfigError: A model that was not made by ``timm.create_model``.
    """
    from timm.models._hub import save_for_hf

    folder, model = Path(folder), cast(Any, vit)
    if not (getattr(model, "pretrained_cfg", None) or {}).get("architecture"):
        raise ConfigError(
            f"write_folder: vit must be made by timm.create_model, which names its architecture, "
            f"got a plain {type(vit).__name__}"
        )
    with staging(folder) as temporary:
        size = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
        about: dict[str, Any] = {"pretrained_cfg": {"input_size": size}}
        about |= {"label_names": list(classes)} if classes else {}
        here = model if model.patch_embed.proj.weight.is_cpu else copy.deepcopy(model).cpu()
        save_for_hf(here, str(temporary), about, _arguments(model), safe_serialization=True)
        for part in ("model.safetensors", "config.json"):  # the configuration last
            os.replace(temporary / part, folder / part)
    return folder


def _arguments(vit: Any) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that differ from the architecture's, read off a model."""
    embed = vit.patch_embed
    options = {
        "img_size": list(embed.img_size), "patch_size": embed.patch_size[0],
        "in_chans": embed.proj.in_channels, "embed_dim": vit.embed_dim, "depth": len(vit.blocks),
        "num_heads": vit.blocks[0].attn.num_heads, "global_pool": vit.global_pool,
    }  # fmt: skip
    for name in {"fc_norm", "use_fc_norm"} & set(inspect.signature(type(vit)).parameters):
        options[name] = not isinstance(vit.fc_norm, nn.Identity)
    return options


def load_weights(
    into: nn.Module,
    weights: Weights | str | os.PathLike[str],
    *,
    resample: bool = False,
) -> list[str]:
    """Put ``weights`` in place; the encoder must fit, the head need not.

    Decoder and projectors are loaded where both sides have them.

    Args:
        into: A distiller, a student, or a timm model.
        weights: Weights or the path of a checkpoint.
        resample: Fit a position table of another grid by interpolation; else it is refused.

    Returns:
        Names of what the target has and the checkpoint does not (a new head, for example).

    Raises:
        CheckpointError: Another architecture, patch size or grid; the message names them.
    """
    if not isinstance(weights, Weights):
        with reading(weights, "a checkpoint that fits", CheckpointError):
            return load_weights(into, read_weights(weights), resample=resample)
    vit, decoder, projectors = _parts(into)
    missing = _load_encoder(vit, weights.encoder, resample)
    if decoder is not None and weights.decoder:
        _load_strict(decoder, weights.decoder, "decoder")
    elif decoder is not None:
        missing += [f"decoder.{name}" for name in decoder.state_dict()]
    if weights.projectors and hasattr(into, "pairs"):
        if len(weights.projectors) != len(projectors):
            raise CheckpointError(
                f"load_weights: the checkpoint must have {len(projectors)} projectors, one per "
                f"aligned layer, got {len(weights.projectors)}"
            )
        for (name, projector), state in zip(projectors.items(), weights.projectors, strict=True):
            _load_strict(projector, state, f"projector of {name}")
    return missing


def _parts(source: Any) -> tuple[Any, Any, dict[str, nn.Module]]:
    """Timm model, decoder and projectors by term, of a distiller, a student or a timm model."""
    terms = getattr(source, "pairs", ())
    projectors = {name: source.objective.module(name).projector for name in terms}
    student = getattr(source, "student", source)
    encoder = getattr(student, "encoder", None)
    return getattr(encoder, "vit", student), getattr(student, "decoder", None), projectors


# --- reading -----------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"read_weights: {path} is damaged: {error}") from error


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content = _load(path)
    except Exception as error:  # torch raises a dozen kinds here, from KeyError to EOFError
        raise CheckpointError(
            f"read_weights: {path} cannot be loaded without running code, or is damaged: "
            f"{str(error).splitlines()[0]}"
        ) from error
    extra: dict[str, Any] = {}
    if isinstance(content, dict):
        key = next((k for k in _HOLDERS if k in content), None)
        if key is not None:
            extra = {k: v for k, v in content.items() if isinstance(v, int | float | str)}
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"read_weights: {path} must hold a dict of tensors")
    return content, extra


class _Ignored:
    """Stands in for what a file holds besides tensors: is made of anything, and does nothing."""

    def __new__(cls, *_: Any) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _load(path: Path) -> Any:
    """The content of a pickle without running its code.

    Official files carry their command line, Lightning's their options: a namespace holds values,
    and objects of other classes are left out.
    """
    known: list[Any] = [argparse.Namespace]
    with contextlib.suppress(Exception):  # of an old format: then unknown classes are refused
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        known += [(_Ignored, name) for name in names if name != "argparse.Namespace"]
    with torch.serialization.safe_globals(known):
        return torch.load(path, map_location="cpu", weights_only=True)


def _sort(state: Mapping[str, Tensor]) -> Weights:
    """Tell encoder, decoder and projectors apart by name, whatever the format."""
    official = {theirs: ours for ours, theirs in _DECODER.items()}
    weights, heads = Weights({}), dict[int, dict[str, Tensor]]()
    prefix = _prefix(state)
    ours = prefix.endswith("encoder.")
    root = prefix.removesuffix("encoder.") if ours else prefix
    state = {name.removeprefix(root): v for name, v in state.items() if name.startswith(root)}
    if not any(name.startswith("decoder_") for name in state):
        del official["mask_token"]  # DINOv2 has one too, of its encoder
    for name, value in state.items():
        name = re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name)  # DINOv2 keeps them in chunks
        part, _, rest = name.partition(".")
        if name.startswith(_HEADS):
            index, _, inner = name.removeprefix(_HEADS).partition(".")
            heads.setdefault(int(index), {})[inner] = value
            weights.form = "dmae"
        elif part == "projector":
            index, _, inner = rest.partition(".")
            heads.setdefault(int(index), {})[inner] = value
        elif part in official:
            weights.decoder[official[part] + ("." + rest if rest else "")] = value
            weights.form = "mae" if weights.form == "timm" else weights.form
        elif part in ("encoder", "decoder"):
            getattr(weights, part)[rest] = value
            weights.form = "potstill"
        elif not ours:
            weights.encoder[name] = value
    weights.projectors = [heads[index] for index in sorted(heads)]
    if weights.form == "dmae":  # a linear head there is what is layer 0 here
        weights.projectors = [
            {f"0.{k}" if k in ("weight", "bias") else k: v for k, v in head.items()}
            for head in weights.projectors
        ]
    return weights


def _prefix(names: Mapping[str, Any]) -> str:
    """What stands before ``blocks.0.``: of a wrapper, a Lightning module, or one of two models."""
    found = {name.partition("blocks.0.")[0] for name in names if "blocks.0." in name}
    fitting = sorted(p for p in found if not p or (p.endswith(".") and "decoder." not in p))
    chosen = next((prefix for prefix in fitting if "teacher" in prefix), "".join(fitting[:1]))
    if len(fitting) > 1:
        _log.warning("read_weights: of %s, %r is read", ", ".join(map(repr, fitting)), chosen)
    return chosen


# --- writing -----------------------------------------------------------------------------------


def _join(weights: Weights, form: Format) -> dict[str, Tensor]:
    if form == "timm":
        return dict(weights.encoder)
    if form == "potstill":
        state = {f"encoder.{name}": value for name, value in weights.encoder.items()}
        state |= {f"decoder.{name}": value for name, value in weights.decoder.items()}
        for index, head in enumerate(weights.projectors):
            state |= {f"projector.{index}.{name}": value for name, value in head.items()}
        return state
    state = {k: v for k, v in weights.encoder.items() if not k.startswith(("head.", "fc_norm."))}
    for name, value in weights.decoder.items():
        part, dot, rest = name.partition(".")
        state[_DECODER[part] + dot + rest] = value
    if form == "dmae":
        for index, head in enumerate(weights.projectors):
            if set(head) - {"0.weight", "0.bias"}:
                raise ConfigError(
                    "write_weights: projectors must be linear for dmae, got "
                    f"{', '.join(sorted(head))}; use the potstill format"
                )
            for name, value in head.items():
                state[f"{_HEADS}{index}.{name.removeprefix('0.')}"] = value
    return state


# --- loading -----------------------------------------------------------------------------------


def _load_encoder(vit: Any, state: Mapping[str, Tensor], resample: bool) -> list[str]:
    state, own = _as_timm(vit, state, resample), _state(vit)
    _move_norm(state, own)
    for name in [n for n in state if n.startswith(("head.", "head_dist."))]:
        if name not in own or own[name].shape != state[name].shape:
            del state[name]  # another number of classes, or none: the head is new
    unknown = sorted(set(state) - set(own))
    wrong = [n for n in state if n in own and own[n].shape != state[n].shape]
    missing = sorted(set(own) - set(state))
    required = [n for n in missing if not n.startswith(("head", "fc_norm", "norm.", "attn_pool"))]
    if wrong or unknown or required:
        problem = [f"{n} is {list(state[n].shape)}, not {list(own[n].shape)}" for n in wrong[:3]]
        problem += [f"{n} is unknown" for n in unknown[:3]]
        problem += [f"{n} is missing" for n in required[:3]]
        raise CheckpointError(
            f"load_weights: the checkpoint must fit {type(vit).__name__} (width "
            f"{vit.embed_dim}, depth {len(vit.blocks)}, patch "
            f"{tuple(vit.patch_embed.patch_size)}), but {'; '.join(problem)}; "
            "make the model with the checkpoint's architecture"
        )
    vit.load_state_dict(state, strict=False)
    return missing


def _move_norm(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Models that pool by the mean have their last norm as ``fc_norm``, others as ``norm``."""
    for here, there in (("norm", "fc_norm"), ("fc_norm", "norm")):
        if f"{there}.weight" in own and f"{there}.weight" not in state:
            for leaf in ("weight", "bias"):
                if f"{here}.{leaf}" in state and f"{here}.{leaf}" not in own:
                    state[f"{there}.{leaf}"] = state.pop(f"{here}.{leaf}")


def _as_timm(vit: Any, state: Mapping[str, Tensor], resample: bool) -> dict[str, Tensor]:
    """Names and shapes as ``vit`` has them, by the filter of timm's that belongs to its family.

    The filter also fits positions of another grid and patches of another size; unless ``resample``
    asks for it, the former are refused here and the latter by their shape.
    """
    convert = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    if convert is None:  # a class of the user's own
        return dict(state)
    patch, table = "patch_embed.proj.weight", "pos_embed"
    held = {name: state[name] for name in (patch, table) if name in state}
    refused = CheckpointError(
        f"load_weights: the checkpoint has positions for {_grid(held)}, the model has a grid of "
        f"{tuple(vit.patch_embed.grid_size)}; pass resample=True to interpolate (commands: name "
        "the image size), or make the model with that image size"
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it looks for in vain
            found: dict[str, Tensor] = convert(dict(state), vit)
    except (RuntimeError, AssertionError) as error:  # a table that is not square
        raise refused from error
    if table in held and table in found and _side(held[table]) != _side(found[table]):
        if not resample:
            raise refused
        _log.warning(
            "load_weights: positions for %s are interpolated to %s", _grid(held),
            tuple(vit.patch_embed.grid_size),
        )  # fmt: skip
    if patch in held and not resample and held[patch].ndim == 4:
        found[patch] = held[patch]
    return found


def _side(table: Tensor) -> int:
    """Patches on the side of a square grid; a few prefix tokens do not change it."""
    return math.isqrt(table.shape[1])


def _grid(held: Mapping[str, Tensor]) -> str:
    side = _side(held["pos_embed"]) if "pos_embed" in held else 0
    return f"{side * side} patches ({side} x {side})"


def _load_strict(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        detail = str(error).splitlines()[1:2] or [str(error)]
        raise CheckpointError(
            f"load_weights: the {what} of the checkpoint does not fit:{detail[0]}; make it with "
            "the checkpoint's depth and width"
        ) from error


def _state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state that further training does not touch."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
