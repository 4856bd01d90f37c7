"""Scenes from COLMAP's sparse models, text or binary."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from potstill.core import DataError, reading
from potstill.nerf.cameras import rotations
from potstill.nerf.lenses import Lens
from potstill.nerf.scenes.framing import unbounded
from potstill.nerf.scenes.scene import Scene
from potstill.nerf.scenes.views import View, assemble

__all__ = ["find_model", "load_colmap"]

# name and number of parameters by COLMAP's model id
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}
_COUNTS = dict(_MODELS.values())
_LENSES: dict[str, Lens] = {
    **dict.fromkeys(_COUNTS, "perspective"),
    **dict.fromkeys((name for name in _COUNTS if name.endswith("FISHEYE")), "fisheye"),
    "FOV": "fov",
    "THIN_PRISM_FISHEYE": "thin-prism",
    "RAD_TAN_THIN_PRISM_FISHEYE": "fisheye624",
    "SIMPLE_DIVISION": "division",
    "DIVISION": "division",
    "EUCM": "eucm",
    "EQUIRECTANGULAR": "equirectangular",
}


class _Camera(NamedTuple):
    model: str
    width: int
    height: int
    parameters: list[float]


class _Image(NamedTuple):
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


def load_colmap(folder: Path, *, downsample: float = 1, allow_missing: bool = False) -> Scene:
    """Read cameras, images and points of a sparse model, and the photos in ``images/``.

    Every camera model that COLMAP has is read. A photo in ``masks/`` of the same name
    (or with .png behind it, as COLMAP takes it) is black where nothing is to be used. Normalised
    and contracted like ``transforms.json``, by the points where there are 100 or more; every 8th
    view by name tests.

    Raises:
        DataError: Files are missing or damaged, or a lens is of another model.
    """
    model = find_model(folder)
    if model is None:
        raise DataError(
            f"load_colmap: {folder} must hold a sparse model, got no cameras.bin or cameras.txt in "
            "it, sparse/0 or sparse"
        )
    kind = "bin" if (model / "cameras.bin").is_file() else "txt"
    parts = {}
    for name in ("cameras", "images"):
        with reading(model / f"{name}.{kind}", f"the {name} of a whole model"):
            parts[name] = _READERS[name, kind](model / f"{name}.{kind}")
    cameras, images = parts["cameras"], sorted(parts["images"], key=lambda image: image.name)
    if not images:
        raise DataError(f"load_colmap: {model / f'images.{kind}'} must hold views, got none")
    photos = {image.name: folder / "images" / image.name.replace("\\", "/") for image in images}
    absent = [name for name, path in photos.items() if not path.is_file()]
    if absent and not allow_missing:
        raise DataError(
            f"load_colmap: {len(absent)} of {len(images)} views have no photo in "
            f"{folder / 'images'}: {', '.join(absent[:5])}; pass allow_missing=True "
            "(--allow-missing)"
        )
    views = [_view(image, cameras, photos[image.name]) for image in images
             if image.name not in absent]  # fmt: skip
    lens = _lens({cameras[image.camera].model for image in images})
    split, notes = assemble(views, lens, model, downsample=downsample, rescale=True)
    if absent:
        notes.insert(0, f"{len(absent)} views have no photo")
    points = None
    source = model / f"points3D.{kind}"
    if source.is_file():
        with reading(source, "the points of a whole model"):
            points = _READERS["points3D", kind](source)
    return unbounded(folder.name, "colmap", split, notes, points=points)


def _view(image: _Image, cameras: dict[int, _Camera], photo: Path) -> View:
    if image.camera not in cameras:
        raise DataError(f"load_colmap: {image.name} must have a known camera, got {image.camera}")
    if not sum(q * q for q in image.quaternion) > 1e-12:
        raise DataError(f"load_colmap: {image.name} must have a rotation, got the quaternion 0")
    quaternion = torch.tensor([image.quaternion], dtype=torch.float64)
    rotation = rotations(quaternion)[0].T  # world to camera, transposed
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation * torch.tensor([1.0, -1.0, -1.0])  # OpenCV to OpenGL
    pose[:3, 3] = -(rotation @ torch.tensor(image.translation, dtype=torch.float64))
    camera = cameras[image.camera]
    p = camera.parameters
    if camera.model == "EQUIRECTANGULAR":
        p = [p[0] / (2 * math.pi), p[1] / math.pi, p[0] / 2, p[1] / 2]
    elif camera.model.startswith("SIMPLE") or camera.model in ("RADIAL", "RADIAL_FISHEYE"):
        p = [p[0], *p]  # one focal length
    folder = photo.parents[len(Path(image.name).parts) - 1].with_name("masks")
    masks = (folder / image.name, folder / f"{image.name}.png")
    mask = next((path for path in masks if path.is_file()), None)
    size = (camera.width, camera.height)
    return View(image.name, photo, pose, p[:4], size, p[4:], mask)


def _lens(models: set[str]) -> Lens:
    kinds = {_LENSES[model] for model in models}
    if len(kinds) > 1:
        raise DataError(
            f"load_colmap: cameras must all have lenses of one kind, got {sorted(models)}; "
            "undistort with `colmap image_undistorter`"
        )
    return kinds.pop()


def _cameras_text(path: Path) -> dict[int, _Camera]:
    cameras = {}
    for line in _lines(path):
        number, name, width, height, *values = line.split()
        _check(path, name)
        if len(values) != _COUNTS[name]:
            raise DataError(
                f"{path}: camera {number} must have {_COUNTS[name]} parameters, got {len(values)}"
            )
        cameras[int(number)] = _Camera(name, int(width), int(height), [float(v) for v in values])
    return cameras


def _images_text(path: Path) -> list[_Image]:
    images = []
    # two lines a view: the pose, and the points, which may be an empty line
    lines = [line for line in path.read_text("utf-8-sig").splitlines() if not line.startswith("#")]
    for line in lines[::2]:
        if not line.strip():
            continue
        _, *pose, camera, name = line.split(maxsplit=9)
        values = [float(value) for value in pose]
        images.append(_Image(values[:4], values[4:7], int(camera), name))
    return images


def _points_text(path: Path) -> torch.Tensor:
    rows = [[float(value) for value in line.split()[1:4]] for line in _lines(path)]
    return torch.tensor(rows).reshape(-1, 3)


def _cameras_binary(path: Path) -> dict[int, _Camera]:
    data, cameras = path.read_bytes(), {}
    at = 8
    for _ in _counted(data, path, 24):
        number, kind, width, height = struct.unpack_from("<iiQQ", data, at)
        name, size = _MODELS.get(kind, (f"number {kind}", 0))
        _check(path, name)
        values = struct.unpack_from(f"<{size}d", data, at + 24)
        cameras[number] = _Camera(name, width, height, list(values))
        at += 24 + 8 * size
    return cameras


def _images_binary(path: Path) -> list[_Image]:
    data, images = path.read_bytes(), []
    at = 8
    for _ in _counted(data, path, 73):
        number, *pose, camera = struct.unpack_from("<i7di", data, at)
        end = data.index(b"\0", at + 64)
        images.append(_Image(pose[:4], pose[4:], camera, data[at + 64 : end].decode()))
        (points,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + 24 * points
        if at > len(data):
            raise DataError(f"{path}: image {number} must have its points, got {points} of them")
    return images


def _points_binary(path: Path) -> torch.Tensor:
    data, points = path.read_bytes(), []
    at = 8
    for _ in _counted(data, path, 51):
        points.append(struct.unpack_from("<3d", data, at + 8))
        (length,) = struct.unpack_from("<Q", data, at + 43)
        at += 51 + 8 * length
    return torch.from_numpy(np.array(points, dtype=np.float32).reshape(-1, 3))


def _counted(data: bytes, path: Path, size: int) -> Iterator[int]:
    """As many turns as the file says that it has records of at least ``size`` bytes."""
    (count,) = struct.unpack_from("<Q", data)
    if count * size > len(data):
        raise DataError(f"{path} must hold what it counts, got {count} in {len(data)} bytes")
    return iter(range(count))


def _check(path: Path, name: str) -> None:
    if name not in _COUNTS:
        raise DataError(
            f"load_colmap: {path}: lens must be one of {', '.join(_COUNTS)}, got {name}; "
            "undistort with `colmap image_undistorter`"
        )


def _lines(path: Path) -> list[str]:
    text = path.read_text("utf-8-sig")
    return [s for line in text.splitlines() if (s := line.strip()) and s[0] != "#"]


_READERS: dict[tuple[str, str], Any] = {
    ("cameras", "txt"): _cameras_text,
    ("cameras", "bin"): _cameras_binary,
    ("images", "txt"): _images_text,
    ("images", "bin"): _images_binary,
    ("points3D", "txt"): _points_text,
    ("points3D", "bin"): _points_binary,
}
