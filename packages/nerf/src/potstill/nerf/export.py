"""Exports that others read: mesh and point cloud as PLY, tables in tiny-cuda-nn's order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core import BackendError, ConfigError, DataError, atomic
from potstill.nerf.backends import tcnn
from potstill.nerf.backends.levels import Levels
from potstill.nerf.fields.base import Field
from potstill.nerf.fields.hash import HashField

__all__ = ["export_mesh", "export_points", "export_tcnn", "load_tcnn", "write_ply"]


@torch.no_grad()
def export_mesh(
    field: Field,
    path: str | os.PathLike[str],
    *,
    resolution: int = 128,
    depth: float = 0.35,
    similarity: Tensor | Sequence[Sequence[float]] | None = None,
    crop: Sequence[float] = (),
    components: float = 0.0,
) -> tuple[int, int]:
    """The surface where one step through the field absorbs a given optical depth, as PLY.

    Source: Lorensen and Cline, "Marching Cubes", SIGGRAPH 1987, as in scikit-image. Vertices are
    coloured as seen from outside, against the normal.

    Args:
        field: A trained field.
        path: The file.
        resolution: Samples an axis of the unit cube.
        depth: Optical depth of a cell at the surface.
        similarity: Map of the input's coordinates to the field's; its inverse is applied.
        crop: Low and high corner of a box of the input; all of it when empty.
        components: Share of the largest part's cells that other parts need to be kept.

    Returns:
        Numbers of vertices and faces.

    Raises:
        DataError: The field has no such surface.
        BackendError: scikit-image is missing.
    """
    try:
        from skimage.measure import (  # type: ignore[import-not-found, unused-ignore]
            label,
            marching_cubes,
        )
    except ImportError as error:
        raise BackendError(
            "export_mesh: scikit-image is needed; pip install 'potstill-nerf[mesh]'"
        ) from error
    if resolution < 8:
        raise ConfigError(f"export_mesh: resolution must be at least 8, got {resolution}")
    line = (torch.arange(resolution) + 0.5) / resolution
    unit = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(-1, 3)
    size = float(np.prod(np.subtract(field.space.high, field.space.low)) ** (1 / 3))
    volume = torch.zeros(len(unit))
    inside = field.occupancy.occupied(unit.to(_device(field))).nonzero()[:, 0].cpu()
    volume[inside] = _density(field, field.space.points(unit[inside])) * size / resolution
    world = _to_input(field.space.world(field.space.points(unit)), similarity)
    volume[~_within(world, crop)] = 0
    values = volume.reshape(resolution, resolution, resolution).numpy()
    if components:
        parts = label(values > depth)
        cells = np.bincount(parts.ravel())
        cells[0] = 0
        values[(cells < components * cells.max())[parts] & (parts > 0)] = 0
    if not values.min() < depth < values.max():
        raise DataError(
            f"export_mesh: depth must be between {values.min():.3g} and {values.max():.3g}, the "
            f"optical depths of cells, got {depth}; train longer, or choose another"
        )
    vertices, faces, normals, _ = marching_cubes(values, depth)
    place = field.space.points(torch.from_numpy((vertices + 0.5) / resolution).float())
    outward = torch.from_numpy(np.ascontiguousarray(normals)).float()  # towards low density
    seen = field.space.world(place)
    if field.space.kind == "ndc":  # a mirrored space, all of which is seen from its origin
        outward, faces = -seen, faces[:, ::-1]
    colors = _colors(field, place, -torch.nn.functional.normalize(outward + 1e-9, dim=1))
    write_ply(path, _to_input(seen, similarity).numpy(), colors.numpy(), faces[:, ::-1])
    return len(vertices), len(faces)


@torch.no_grad()
def export_points(
    field: Field,
    path: str | os.PathLike[str],
    *,
    count: int = 100_000,
    similarity: Tensor | Sequence[Sequence[float]] | None = None,
    crop: Sequence[float] = (),
    seed: int = 0,
) -> int:
    """Coloured points, drawn with a density that follows the opacity of the field, as PLY.

    Args:
        field: A trained field.
        path: The file.
        count: Number of points.
        similarity: Map of the input's coordinates to the field's; its inverse is applied.
        crop: Low and high corner of a box of the input; all of it when empty.
        seed: Seed of the draws.

    Returns:
        How many were written.

    Raises:
        DataError: No cell is occupied.
    """
    field.occupancy.check("export_points")
    draw = torch.Generator().manual_seed(seed)
    cells = field.occupancy.binaries[0].cpu().nonzero()
    tries = torch.randint(len(cells), (8 * count,), generator=draw)
    unit = (cells[tries] + torch.rand(len(tries), 3, generator=draw)) / field.occupancy.size
    step = float(field.space.edges()[1] - field.space.edges()[0])
    points = field.space.points(unit)
    points = points[_within(_to_input(field.space.world(points), similarity), crop)]
    if not len(points):
        raise DataError("export_points: crop must hold occupied cells, got a box without any")
    opacity = -torch.expm1(-_density(field, points) * step) + 1e-6
    chosen = torch.multinomial(opacity, min(count, len(opacity)), generator=draw)
    place = points[chosen]
    down = torch.tensor([0.0, 0.0, -1.0]).expand_as(place)
    colors = _colors(field, place, down)
    write_ply(path, _to_input(field.space.world(place), similarity).numpy(), colors.numpy())
    return len(place)


def export_tcnn(field: HashField, path: str | os.PathLike[str]) -> Path:
    """The hash table as ``params`` of a ``tinycudann.Encoding``, with its configuration.

    A safetensors file: ``params`` in tiny-cuda-nn's order, the network weights as they are in
    torch ([out, in], row-major), and in the header the JSON for ``tinycudann.Encoding``.
    """
    import json

    from safetensors.torch import save_file

    if not isinstance(field, HashField):
        raise ConfigError(f"export_tcnn: field must be of kind hash, got {field.kind}")
    levels = field.grid.levels
    tensors = {"params": tcnn.to_params(field.grid.table, levels)}
    for name, value in field.named_parameters():
        if name != "grid.table":
            tensors[name] = value.detach().contiguous()
    header = {"encoding": json.dumps(tcnn.config(levels)), "levels": json.dumps(levels.as_dict())}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=header)
    return Path(path)


def load_tcnn(params: Tensor, levels: Levels) -> Tensor:
    """A table from ``params`` of a ``tinycudann.Encoding`` with the same levels."""
    return tcnn.from_params(params, levels)


def write_ply(
    path: str | os.PathLike[str],
    points: Any,
    colors: Any,
    faces: Any = None,
) -> Path:
    """Write points [P 3] with colours [P 3] in [0, 1], and triangles [T 3], as binary PLY."""
    kinds = [(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
    vertices = np.empty(len(points), dtype=kinds)
    for column, (name, _) in enumerate(kinds[:3]):
        vertices[name] = points[:, column]
    for column, (name, _) in enumerate(kinds[3:]):
        vertices[name] = np.round(np.clip(colors[:, column], 0, 1) * 255)
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"property uchar {color}" for color in ("red", "green", "blue")]
    if faces is not None:
        lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*lines, "end_header", ""]).encode())
        file.write(vertices.tobytes())
        if faces is not None:
            table = np.empty(len(faces), dtype=[("n", "u1"), ("v", "<i4", 3)])
            table["n"], table["v"] = 3, faces
            file.write(table.tobytes())
    return Path(path)


def _device(field: Field) -> torch.device:
    return next(field.parameters()).device


def _density(field: Field, points: Tensor) -> Tensor:
    """Of many points, part by part where the field is; on the CPU."""
    parts = points.split(65536)
    return torch.cat([field.density(part.to(_device(field))).cpu() for part in parts])


def _colors(field: Field, points: Tensor, views: Tensor) -> Tensor:
    device = _device(field)
    pairs = zip(points.split(65536), views.split(65536), strict=True)
    return torch.cat(
        [field.head(field.features(p.to(device)), v.to(device)).cpu() for p, v in pairs]
    )


def _within(points: Tensor, crop: Sequence[float]) -> Tensor:
    if len(crop) not in (0, 6):
        raise ConfigError(
            f"export: crop must be six numbers, the low and the high corner, got {len(crop)}"
        )
    if not len(crop):
        return torch.ones(len(points), dtype=torch.bool)
    low, high = points.new_tensor([tuple(crop[:3]), tuple(crop[3:])])
    return ((points >= low) & (points <= high)).all(1)


def _to_input(points: Tensor, similarity: Tensor | Sequence[Sequence[float]] | None) -> Tensor:
    if similarity is None:
        return points
    back = torch.linalg.inv(torch.as_tensor(similarity).double()).float()
    return points @ back[:3, :3].T + back[:3, 3]
