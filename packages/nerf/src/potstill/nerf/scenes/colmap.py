"""Scenes from COLMAP's sparse models, text or binary."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import torch

from potstill.core import DataError
from potstill.nerf.cameras import Cameras, rotations
from potstill.nerf.scenes.scene import Scene, Split, read_images, unbounded

__all__ = ["find_model", "load_colmap"]

# name and number of parameters by COLMAP's model id
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
}


class _Lens(NamedTuple):
    model: str
    width: int
    height: int
    parameters: list[float]


class _View(NamedTuple):
    quaternion: list[float]
    translation: list[float]
    camera: int
    name: str


def find_model(folder: Path) -> Path | None:
    """The folder of a sparse model at or below ``folder``."""
    places = (
        folder,
        folder / "sparse" / "0",
        folder / "sparse",
        folder / "colmap" / "sparse" / "0",
    )
    for place in places:
        if any((place / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
            return place
    return None


def load_colmap(folder: Path, *, downsample: int = 1, allow_missing: bool = False) -> Scene:
    """Read ``cameras`` and ``images`` of a sparse model, and the photos in ``images/``.

    Lenses: SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL and OPENCV. Normalised and contracted
    like ``transforms.json``; every 8th view by name tests.

    Raises:
        DataError: Files are missing or damaged, or a lens is of another model.
    """
    model = find_model(folder)
    if model is None:
        raise DataError(
            f"load_colmap: {folder} must hold a sparse model, got no cameras.bin or cameras.txt in "
            "it, sparse/0 or sparse"
        )
    binary = (model / "cameras.bin").is_file()
    try:
        lenses = _lenses_binary(model) if binary else _lenses_text(model)
        views = _views_binary(model) if binary else _views_text(model)
    except (OSError, struct.error, ValueError, IndexError) as error:
        raise DataError(f"load_colmap: {model} must be a whole model, got: {error}") from error
    views.sort(key=lambda view: view.name)
    photos = {view.name: folder / "images" / view.name for view in views}
    absent = [name for name, path in photos.items() if not path.is_file()]
    if absent and not allow_missing:
        raise DataError(
            f"load_colmap: {len(absent)} of {len(views)} views have no photo in {folder / 'images'}"
            f": {', '.join(absent[:5])}; pass allow_missing=True (--allow-missing)"
        )
    views = [view for view in views if view.name not in absent]
    images = read_images([photos[view.name] for view in views], downsample)
    cameras = _cameras(views, lenses).resized(images.shape[2], images.shape[1])
    notes = (f"{len(absent)} views have no photo",) if absent else ()
    return unbounded(folder.name, "colmap", Split(cameras, images), notes)


def _cameras(views: list[_View], lenses: dict[int, _Lens]) -> Cameras:
    for view in views:
        if view.camera not in lenses:
            raise DataError(f"load_colmap: {view.name} must have a known camera, got {view.camera}")
        if not sum(q * q for q in view.quaternion) > 1e-12:
            raise DataError(f"load_colmap: {view.name} must have a rotation, got the quaternion 0")
    sizes = {lenses[view.camera][1:3] for view in views}
    if len(sizes) != 1:
        raise DataError(f"load_colmap: cameras must have one image size, got {sorted(sizes)}")
    quaternion = torch.tensor([view.quaternion for view in views], dtype=torch.float64)
    rotation = rotations(quaternion).mT  # world to camera, transposed
    translation = torch.tensor([view.translation for view in views], dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(views), 1, 1)
    poses[:, :3, :3] = rotation * torch.tensor([1.0, -1.0, -1.0])  # OpenCV to OpenGL
    poses[:, :3, 3] = -(rotation @ translation[..., None])[..., 0]
    lens = [_pinhole(lenses[view.camera]) for view in views]
    distortion = torch.tensor([values[4:] for values in lens])
    return Cameras(
        poses.float(),
        torch.tensor([values[:4] for values in lens]),
        *sizes.pop(),
        distortion=distortion if bool(distortion.any()) else None,
        names=tuple(view.name for view in views),
    )


def _pinhole(lens: _Lens) -> list[float]:
    """fx, fy, cx, cy, k1, k2, p1, p2."""
    p = lens.parameters
    if lens.model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        p = [p[0], *p]
    return (p + [0.0] * 8)[:8]


def _lenses_text(model: Path) -> dict[int, _Lens]:
    lenses = {}
    for line in _lines(model / "cameras.txt"):
        number, name, width, height, *values = line.split()
        _check(name)
        lenses[int(number)] = _Lens(name, int(width), int(height), [float(v) for v in values])
    return lenses


def _views_text(model: Path) -> list[_View]:
    views = []
    # two lines a view: the pose, and the points, which may be an empty line
    text = (model / "images.txt").read_text().splitlines()
    lines = [line for line in text if not line.startswith("#")]
    for line in lines[::2]:
        if not line.strip():
            continue
        _, *pose, camera, name = line.split(maxsplit=9)
        values = [float(value) for value in pose]
        views.append(_View(values[:4], values[4:7], int(camera), name))
    return views


def _lenses_binary(model: Path) -> dict[int, _Lens]:
    data = (model / "cameras.bin").read_bytes()
    (count,), at, lenses = struct.unpack_from("<Q", data), 8, {}
    for _ in range(count):
        number, kind, width, height = struct.unpack_from("<iiQQ", data, at)
        name, size = _MODELS.get(kind, (f"number {kind}", 0))
        _check(name)
        values = struct.unpack_from(f"<{size}d", data, at + 24)
        lenses[number] = _Lens(name, width, height, list(values))
        at += 24 + 8 * size
    return lenses


def _views_binary(model: Path) -> list[_View]:
    data = (model / "images.bin").read_bytes()
    (count,), at, views = struct.unpack_from("<Q", data), 8, []
    for _ in range(count):
        _, *pose, camera = struct.unpack_from("<i7di", data, at)
        end = data.index(b"\0", at + 64)
        views.append(_View(pose[:4], pose[4:], camera, data[at + 64 : end].decode()))
        (points,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + 24 * points
    return views


def _check(name: str) -> None:
    known = [model for model, _ in _MODELS.values()]
    if name not in known:
        raise DataError(
            f"load_colmap: lens must be one of {', '.join(known)}, got {name}; undistort with "
            "`colmap image_undistorter`"
        )


def _lines(path: Path) -> list[str]:
    return [s for line in path.read_text().splitlines() if (s := line.strip()) and s[0] != "#"]
