"""Fields by kind, and their files: strict, one safetensors file with a JSON header."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from potstill.core import CheckpointError, ConfigError, atomic, nearest, reading
from potstill.core.command import config as configs
from potstill.nerf.backends.levels import Levels
from potstill.nerf.encodings.hashgrid import HashGrid
from potstill.nerf.fields.base import Activation, Field
from potstill.nerf.fields.composite import CompositeConfig, CompositeField
from potstill.nerf.fields.factored import CPConfig, CPField, VMConfig, VMField
from potstill.nerf.fields.grid import GridConfig, GridField
from potstill.nerf.fields.hash import HashConfig, HashField
from potstill.nerf.fields.mlp import MLPConfig, MLPField
from potstill.nerf.space import Space

__all__ = ["KINDS", "load_field", "make_field", "save_field", "sized"]

_FORMAT = 1
_FIELDS: dict[str, tuple[type[Field], type[Any]]] = {
    "hash": (HashField, HashConfig),
    "mlp": (MLPField, MLPConfig),
    "vm": (VMField, VMConfig),
    "cp": (CPField, CPConfig),
    "grid": (GridField, GridConfig),
    "composite": (CompositeField, CompositeConfig),
}
KINDS = tuple(_FIELDS)


def make_field(
    kind: str,
    space: Space,
    config: Any = None,
    *,
    occupancy: int = 64,
    activation: Activation | None = None,
    backend: str = "auto",
    cells: torch.Tensor | None = None,
) -> Field:
    """A fresh field.

    Args:
        kind: One of `KINDS`.
        space: Region that it describes.
        config: The dataclass of the kind; its defaults when None.
        occupancy: Cells an axis of the occupancy grid.
        activation: Density of the first feature.
        backend: Backend of the encodings.
        cells: Booleans [R R R] that say where a ``grid`` stores vertices; everywhere when None.

    Raises:
        ConfigError: An unknown kind, or the configuration of another one.

    Example:
        >>> make_field("cp", Space()).kind
        'cp'
    """
    if kind not in _FIELDS:
        raise ConfigError(f"make_field: unknown kind {kind!r}; {nearest(kind, KINDS)}")
    cls, expected = _FIELDS[kind]
    config = config if config is not None else expected()
    if not isinstance(config, expected):
        raise ConfigError(
            f"make_field: config of {kind!r} must be {expected.__name__}, got "
            f"{type(config).__name__}"
        )
    options: dict[str, Any] = dict(occupancy=occupancy, activation=activation, backend=backend)
    if isinstance(config, CompositeConfig):
        parts = [make_field(part, space, occupancy=1, backend=backend) for part in config.kinds]
        return CompositeField(config, space, parts, **options)
    if kind == GridField.kind:
        options["cells"] = cells
    return cls(config, space, **options)


def sized(kind: str, **numbers: int) -> Any:
    """The configuration of a kind with some of its numbers; 0 leaves the default.

    Raises:
        ConfigError: A number that the kind does not have.
    """
    chosen = {name: value for name, value in numbers.items() if value}
    return configs.build(_FIELDS[kind][1], chosen, source=f"--size of {kind}")


def save_field(
    field: Field,
    path: str | os.PathLike[str],
    similarity: torch.Tensor | Sequence[Sequence[float]] | None = None,
    note: str = "",
) -> Path:
    """Write a field: weights, occupancy and level table, with its description in the header.

    Args:
        field: The field.
        path: Ends in ``.safetensors``.
        similarity: Map of the coordinates of the input to those of the field, [4 4].
        note: Anything, e.g. what it was trained on.
    """
    path = Path(path)
    header = {
        "format": _FORMAT,
        "kind": field.kind,
        "config": configs.as_dict(field.config),
        "space": dataclasses.asdict(field.space),
        "activation": dataclasses.asdict(field.activation),
        "occupancy": field.occupancy.size,
        "levels": [grid.levels.as_dict() for _, grid in _grids(field)],
        "similarity": torch.as_tensor(torch.eye(4) if similarity is None else similarity).tolist(),
        "note": note,
    }
    tensors = {name: value.detach().cpu().clone() for name, value in field.state_dict().items()}
    with atomic(path) as temporary:
        save_file(
            {k: v.contiguous() for k, v in tensors.items()},
            temporary,
            metadata={"potstill.nerf": json.dumps(header)},
        )
    return path


def load_field(
    path: str | os.PathLike[str], backend: str = "auto", kind: str | None = None
) -> tuple[Field, dict[str, Any]]:
    """Read a field and its header, strictly; nothing in the file is executed.

    Args:
        path: A file of `save_field`, or the folder of a run that holds ``field.safetensors``.
        backend: Backend of the encodings.
        kind: Refuse a field of another kind.

    Raises:
        CheckpointError: The file is missing, damaged, no field, of a newer format or another kind,
            or its level table does not fit its weights.
    """
    path = Path(path)
    path = path / "field.safetensors" if path.is_dir() else path
    with reading(path, "a field's file", CheckpointError):
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("potstill.nerf", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header.get("format")  # of a mapping
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"load_field: {path} must have format {_FORMAT}, got {header.get('format', 'none')}; "
            "was it written by potstill nerf, or by a newer one?"
        )
    if kind is not None and header.get("kind") != kind:
        raise CheckpointError(
            f"load_field: {path} must hold a {kind} field, got {header.get('kind')}"
        )
    with reading(path, "a field that fits its own header", CheckpointError):
        try:
            field = _rebuild(header, tensors, backend)
        except ConfigError as error:  # here it is not the user's
            raise CheckpointError(f"load_field: {path} must fit its own header: {error}") from error
        field.load_state_dict(tensors, strict=True)
    return field.eval(), header


def _rebuild(header: dict[str, Any], tensors: dict[str, torch.Tensor], backend: str) -> Field:
    kind = header["kind"]
    if kind not in _FIELDS:
        raise ConfigError(f"unknown kind {kind!r}; {nearest(kind, KINDS)}")
    config = configs.build(_FIELDS[kind][1], header["config"], source="its header")
    field = make_field(
        kind,
        configs.build(Space, header["space"], source="its header"),
        config,
        occupancy=header["occupancy"],
        activation=Activation(**header["activation"]),
        backend=backend,
    )
    stored = [Levels.from_dict(values) for values in header["levels"]]
    grids = _grids(field)
    if len(stored) != len(grids):
        raise CheckpointError(
            f"load_field: a {kind} field must have {len(grids)} level tables, got {len(stored)}"
        )
    for levels, (name, grid) in zip(stored, grids, strict=True):
        rows = tensors[f"{name}.table"].shape
        if tuple(rows) != (levels.total, levels.features):
            raise CheckpointError(
                f"load_field: the level table must describe {rows[0]} rows of {rows[1]}, got one "
                f"of {levels.total} rows of {levels.features}"
            )
        grid.levels = levels  # the stored numbers, never computed again
        grid.table = torch.nn.Parameter(torch.empty(tuple(rows)))
    if isinstance(field, GridField):
        field.table = torch.nn.Parameter(torch.zeros_like(tensors["table"]))
    return field


def _grids(field: Field) -> list[tuple[str, HashGrid]]:
    return [(n, m) for n, m in field.named_modules() if isinstance(m, HashGrid)]
