"""Checkpoints: official MAE and DMAE, timm, and safetensors, both ways and bit for bit.

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
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from potstill.core import CheckpointError, ConfigError, atomic, nearest, reading

__all__ = ["Format", "Weights", "load_weights", "read_weights", "write_weights"]

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
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass
class Weights:
    """The parts of a checkpoint, each under our own names.

    Attributes:
        encoder: State of the timm model.
        decoder: State of :class:`PatchDecoder`; empty when there is none.
        projectors: States of the projectors, one per aligned layer in increasing order.
        form: The format that was read.
        extra: What else the file holds (epoch, metadata); never optimiser states.
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
    """Read a checkpoint of any of the four formats; which one is recognised by its content.

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
        # Official files carry their command line; a namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds here, from KeyError to EOFError
        raise CheckpointError(
            f"read_weights: {path} cannot be loaded without running code, or is damaged: "
            f"{str(error).splitlines()[0]}"
        ) from error
    extra: dict[str, Any] = {}
    if isinstance(content, dict):
        key = next((k for k in ("model", "state_dict", "model_ema") if k in content), None)
        if key is not None:
            extra = {k: v for k, v in content.items() if isinstance(v, int | float | str)}
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"read_weights: {path} must hold a dict of tensors")
    return content, extra


def _sort(state: Mapping[str, Tensor]) -> Weights:
    """Tell encoder, decoder and projectors apart by name, whatever the format."""
    official = {theirs: ours for ours, theirs in _DECODER.items()}
    weights, heads = Weights({}), dict[int, dict[str, Tensor]]()
    for name, value in state.items():
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
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
        elif part == "decoder":
            weights.decoder[rest] = value
            weights.form = "potstill"
        elif part == "encoder":
            weights.encoder[rest] = value
            weights.form = "potstill"
        else:
            weights.encoder[name] = value
    weights.projectors = [heads[index] for index in sorted(heads)]
    if weights.form == "dmae":  # a linear head there is what is layer 0 here
        weights.projectors = [
            {f"0.{k}" if k in ("weight", "bias") else k: v for k, v in head.items()}
            for head in weights.projectors
        ]
    return weights


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
    state, own = dict(state), _state(vit)
    _move_norm(state, own)
    for name in [n for n in state if n.startswith(("head.", "head_dist."))]:
        if name not in own or own[name].shape != state[name].shape:
            del state[name]  # another number of classes, or none: the head is new
    if "pos_embed" in state and "pos_embed" in own:
        state["pos_embed"] = _fit_positions(state["pos_embed"], vit, resample)
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


def _fit_positions(table: Tensor, vit: Any, resample: bool) -> Tensor:
    if table.shape == vit.pos_embed.shape or table.shape[-1] != vit.pos_embed.shape[-1]:
        return table
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    patches = table.shape[1] - prefix
    side = round(patches**0.5)
    if not resample or side * side != patches:
        raise CheckpointError(
            f"load_weights: the checkpoint has positions for {patches} patches "
            f"({side} x {side}), the model has a grid of {tuple(vit.patch_embed.grid_size)}; "
            "pass resample=True to interpolate, or make the model with that image size"
        )
    return resample_abs_pos_embed(
        table,
        new_size=list(vit.patch_embed.grid_size),
        old_size=[side, side],
        num_prefix_tokens=prefix,
    )


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
