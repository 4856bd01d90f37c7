"""Packed safetensors: the codes of weights, several in a byte, and what their values need."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from potstill.core import CheckpointError, ConfigError, atomic, nearest, reading
from potstill.quant.weights.grid import Grid
from potstill.quant.weights.lower import bake, lower, lowered
from potstill.quant.weights.quantizers import (
    Buckets,
    DualBinary,
    LearnedLevels,
    LearnedStep,
    Quantizer,
)

__all__ = ["load_lowered", "load_packed", "pack", "save_packed", "unpack"]

_KINDS: Mapping[str, type[Quantizer]] = {
    kind.__name__: kind for kind in (LearnedStep, Buckets, LearnedLevels, DualBinary)
}


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes in 0 to ``2^bits - 1`` as bytes, the first in the lowest bits.

    Args:
        codes: Integers, any shape.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8, [ceil(codes bits / 8)].

    Example:
        >>> pack(torch.tensor([1, 2, 3, 0, 1]), 2).tolist()
        [57, 1]
    """
    each = 8 // bits
    flat = codes.reshape(-1).to(torch.uint8)
    rows = torch.nn.functional.pad(flat, (0, -len(flat) % each)).reshape(-1, each)
    return (rows << (torch.arange(each, dtype=torch.uint8) * bits)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of `pack`: the first ``count`` codes, uint8.

    Example:
        >>> unpack(torch.tensor([57, 1], dtype=torch.uint8), 2, 5).tolist()
        [1, 2, 3, 0, 1]
    """
    each = 8 // bits
    shifts = torch.arange(each, dtype=torch.uint8) * bits
    return ((packed[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:count]


def save_packed(student: nn.Module, path: str | Path) -> Path:
    """Write a lowered student: its weights packed, all else as it is.

    The file is read again before it appears, and is refused where it would give other weights than
    `bake`. Grids of layers' inputs are not in it.

    Args:
        student: A lowered model.
        path: Ends in ``.safetensors``.

    Raises:
        ConfigError: Another suffix, or a student that is not lowered.
        CheckpointError: The file would give other weights.
    """
    path, weights = Path(path), lowered(student)
    if path.suffix != ".safetensors" or not weights:
        raise ConfigError(
            f"save_packed: path must end in .safetensors and student be lowered, got {path} and "
            f"{len(weights)} lowered weights"
        )
    plain = bake(student).cpu()
    state = {name: value.clone().contiguous() for name, value in plain.state_dict().items()}
    about = {}
    for each in weights:
        codes, scales = each.quantizer.encode(each.original.detach())
        grid, kind = each.quantizer.grid, _kind(each.quantizer)
        about[each.key] = {"kind": kind, "shape": list(codes.shape), **dataclasses.asdict(grid)}
        state[f"{each.key}.codes"] = pack(codes.cpu(), grid.stored)
        state |= {f"{each.key}.{name}": s.cpu().clone().contiguous() for name, s in scales.items()}
        del state[each.key]
    with atomic(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt", "potstill.quant": json.dumps(about)})
        again = _read(temporary).state
        for name, value in plain.state_dict().items():
            if not torch.equal(again[name], value):
                raise CheckpointError(
                    f"save_packed: {name} must be read back as it was, got other values; are "
                    "two of its levels equal, or is a scale not finite?"
                )
    return path


def load_packed(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill a plain model with the weights of a packed file.

    Args:
        model: A model of the student's class, not lowered; filled in place.
        path: File of `save_packed`.

    Returns:
        The model.

    Raises:
        CheckpointError: The file is missing, damaged, or of another model.
    """
    with reading(path, "a packed student", CheckpointError):
        state = _read(Path(path)).state
        own = model.state_dict()
        for name in {**own, **state}:
            if name not in state or name not in own or state[name].shape != own[name].shape:
                there = list(state[name].shape) if name in state else "nothing"
                wanted = list(own[name].shape) if name in own else "nothing"
                raise CheckpointError(
                    f"load_packed: {path} must fit {type(model).__name__}, got {there} for {name} "
                    f"where the model has {wanted}"
                )
        model.load_state_dict(state)
    return model


def load_lowered(model: nn.Module, path: str | Path) -> nn.Module:
    """A lowered copy of a plain model with the weights and steps of a packed file.

    Args:
        model: A model of the student's class, not lowered; left as it is.
        path: File of `save_packed` with learned steps.

    Raises:
        CheckpointError: As of `load_packed`, or a file with other quantizers.
    """
    plain = load_packed(copy.deepcopy(model), path)
    found = _read(Path(path))
    if other := [kind for kind in found.kinds.values() if kind != LearnedStep.__name__]:
        raise CheckpointError(f"load_lowered: {path} must have learned steps, got {other[0]}")
    student = lower(plain, Grid(32), parameters=found.grids)
    for each in lowered(student):
        assert isinstance(each.quantizer, LearnedStep)
        each.quantizer.scale.data.copy_(found.scales[each.key]["scale"])
    return student


class _Contents(NamedTuple):
    """All tensors of a packed file, decoded, and of packed ones kind, grid and scales."""

    state: dict[str, Tensor]
    kinds: dict[str, str]
    grids: dict[str, Grid]
    scales: dict[str, dict[str, Tensor]]


def _kind(quantizer: Quantizer) -> str:
    return next(kind.__name__ for kind in type(quantizer).__mro__ if kind.__name__ in _KINDS)


def _read(path: Path) -> _Contents:
    found = _Contents({}, {}, {}, {})
    with safe_open(path, "pt") as file:
        about: dict[str, Any] = json.loads((file.metadata() or {})["potstill.quant"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for key, entry in about.items():
        kind, shape = entry.pop("kind"), entry.pop("shape")
        if kind not in _KINDS:
            raise CheckpointError(f"unknown kind {kind!r} of {key}; {nearest(kind, _KINDS)}")
        found.kinds[key], found.grids[key] = kind, Grid(**entry)
        begin = f"{key}."
        parts = {name: state.pop(name) for name in list(state) if name.startswith(begin)}
        scales = {name.removeprefix(begin): value for name, value in parts.items()}
        codes = unpack(scales.pop("codes"), found.grids[key].stored, _count(shape)).reshape(shape)
        state[key] = _KINDS[kind].decode(found.grids[key], codes, scales)
        found.scales[key] = scales
    found.state.update(state)
    return found


def _count(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())
