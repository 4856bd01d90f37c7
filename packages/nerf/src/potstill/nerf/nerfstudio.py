"""Files of nerfstudio: its camera paths in, its data layout out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core import ConfigError, DataError, atomic, reading
from potstill.nerf.cameras import Cameras
from potstill.nerf.fields.base import Field
from potstill.nerf.lenses import Lens
from potstill.nerf.pictures import save_frames
from potstill.nerf.render.image import render_image

__all__ = ["export_views", "load_path"]

_PATHS = ("perspective", "fisheye", "equirectangular")
_MODELS: dict[Lens, str] = {
    "perspective": "OPENCV",
    "fisheye": "OPENCV_FISHEYE",
    "equirectangular": "EQUIRECTANGULAR",
    "fisheye624": "FISHEYE624",
}
_COEFFICIENTS = {
    "perspective": ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
    "fisheye": ("k1", "k2", "k3", "k4"),
    "equirectangular": (),
}


def load_path(
    path: str | os.PathLike[str],
    similarity: Tensor | Sequence[Sequence[float]] | None = None,
    width: int = 0,
) -> tuple[Cameras, float]:
    """Cameras of a nerfstudio camera path, and frames a second.

    Args:
        path: JSON with ``camera_path``, in the coordinates of the data.
        similarity: Map of these coordinates to the field's.
        width: Width of the images; that of the file when 0.

    Raises:
        DataError: No such file, or no such path in it.
    """
    path = Path(path)
    with reading(path, "a camera path of nerfstudio"):
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        lens, frames = document.get("camera_type", "perspective"), document["camera_path"]
        if lens not in _PATHS or not frames:
            raise DataError(
                f"{path} must have cameras of type {', '.join(_PATHS)}, got {len(frames)} of "
                f"{lens!r}"
            )
        size = (int(document["render_width"]), int(document["render_height"]))
        poses = torch.tensor([frame["camera_to_world"] for frame in frames]).reshape(-1, 4, 4)
        lenses = [_intrinsics(lens, frame.get("fov", 90.0), *size) for frame in frames]
        cameras = Cameras(poses, torch.tensor(lenses), *size, lens=lens)
        fps = float(document.get("fps") or 24)
    if similarity is not None:
        cameras = cameras.moved(torch.as_tensor(similarity))
    if width:
        cameras = cameras.resized(width, max(round(size[1] * width / size[0]), 1))
    return cameras, fps


def _intrinsics(lens: str, fov: float, width: int, height: int) -> list[float]:
    """fx, fy, cx, cy from a vertical field of view in degrees."""
    fx = fy = height / (2 * math.tan(math.radians(float(fov)) / 2))
    if lens == "fisheye":
        fx = fy = height / math.radians(float(fov))
    elif lens == "equirectangular":
        fx, fy = width / (2 * math.pi), height / math.pi
    return [fx, fy, width / 2, height / 2]


def export_views(
    field: Field,
    cameras: Cameras,
    folder: str | os.PathLike[str],
    similarity: Tensor | Sequence[Sequence[float]] | None = None,
) -> int:
    """Render views as data for nerfstudio or instant-ngp: images and ``transforms.json``.

    Args:
        field: A trained field.
        cameras: Cameras to render, in the coordinates of the field.
        folder: Folder of the data.
        similarity: Map of the input's coordinates to the field's; its inverse is applied.

    Returns:
        Number of the views.

    Raises:
        ConfigError: A lens that nerfstudio does not have.
    """
    if cameras.lens not in _MODELS:
        raise ConfigError(
            f"export_views: lens must be one of {', '.join(_MODELS)}, got {cameras.lens!r}, which "
            "nerfstudio does not have; use the field's own renderer (potstill nerf render)"
        )
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    back = torch.linalg.inv(torch.as_tensor(torch.eye(4) if similarity is None else similarity))
    given = cameras.moved(back)
    frames = []
    for view in range(len(cameras)):
        name = f"images/{view:05d}.png"
        rgb, _, _ = render_image(field, cameras, view, field.space, field.occupancy)
        save_frames([rgb], folder / name)
        frames.append({"file_path": name, "transform_matrix": given.poses[view].tolist(),
                       **_lens(given, view)})  # fmt: skip
    document = {"camera_model": _model(cameras), "frames": frames}
    with atomic(folder / "transforms.json") as temporary:
        temporary.write_text(json.dumps(document, indent=1))
    return len(frames)


def _model(cameras: Cameras) -> str:
    full = cameras.distortion is not None and cameras.distortion.shape[1] == 8
    return "FULL_OPENCV" if full and cameras.lens == "perspective" else _MODELS[cameras.lens]


def _lens(cameras: Cameras, view: int) -> dict[str, Any]:
    width, height = cameras.size(view)
    names = dict(zip(("fl_x", "fl_y", "cx", "cy"), cameras.intrinsics[view].tolist(), strict=True))
    if cameras.distortion is not None:
        values = cameras.distortion[view].tolist()
        if cameras.lens == "fisheye624":
            return {"w": width, "h": height, **names, "distortion_params": values}
        names |= dict(zip(_COEFFICIENTS[cameras.lens], values, strict=False))
    return {"w": width, "h": height, **names}
