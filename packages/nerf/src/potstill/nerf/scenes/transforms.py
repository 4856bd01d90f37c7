"""Scenes in JSON: the blender layout, and ``transforms.json`` of instant-ngp and nerfstudio."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from potstill.core import DataError, reading
from potstill.nerf.lenses import Lens
from potstill.nerf.scenes.framing import unbounded
from potstill.nerf.scenes.photos import find_photo
from potstill.nerf.scenes.scene import Scene, Split
from potstill.nerf.scenes.views import View, assemble
from potstill.nerf.space import Space

__all__ = ["load_blender", "load_transforms"]

_MODELS: dict[str, Lens] = {
    **dict.fromkeys(("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL"), "perspective"),
    **dict.fromkeys(("OPENCV", "FULL_OPENCV"), "perspective"),
    "OPENCV_FISHEYE": "fisheye",
    "FISHEYE624": "fisheye624",
    "EQUIRECTANGULAR": "equirectangular",
}
_FLAGS: dict[str, Lens] = {"is_fisheye": "fisheye", "equirectangular": "equirectangular"}

_SIZES = ("w", "h")
_LENS = ("fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov")
_PLANE = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_USED = {
    *("frames", "camera_model", *_FLAGS, *_SIZES, *_LENS, *_PLANE, "integer_depth_scale"),
    *("file_path", "transform_matrix", "mask_path", "depth_file_path", "depth_path"),
    *("train_filenames", "val_filenames", "test_filenames"),
    "distortion_params",
}
# other rays than those of one pose and one lens; with what would be meant without them
_REFUSED = {
    **dict.fromkeys(("latlong", "orthographic", "from_na", "from_mitsuba"), False),
    **dict.fromkeys((f"ftheta_p{k}" for k in range(5)), 0),
    **dict.fromkeys(("rolling_shutter", "transform_matrix_start", "transform_matrix_end"), None),
    **dict.fromkeys(("driver_parameters", "b1", "b2"), None),
}


def load_blender(folder: Path, *, downsample: float = 1, allow_missing: bool = False) -> Scene:
    """Read ``transforms_{train,test}.json`` with ``camera_angle_x``, images usually RGBA.

    The box is [-1.5, 1.5]^3, which holds every scene of NeRF-Synthetic.

    Raises:
        DataError: A file or image is missing or damaged, or values are impossible.
    """
    splits: dict[str, Split] = {}
    notes: list[str] = []
    unused: list[str] = []
    for name in ("train", "test"):
        path = folder / f"transforms_{name}.json"
        document = _read(path)
        views, said, keys = _views(document, path, allow_missing)
        splits[name], more = assemble(
            views, _lens(document, path), path, downsample=downsample, rescale=True
        )
        notes, unused = [*notes, *said, *more], [*unused, *keys]
    return Scene(
        folder.name, "blender", splits["train"], splits["test"], Space("box", near=0.05),
        notes=tuple(notes), unused=tuple(dict.fromkeys(unused)),
    )  # fmt: skip


def load_transforms(
    folder: Path,
    *,
    downsample: float = 1,
    allow_missing: bool = False,
    rescale: bool = False,
    file: str = "transforms.json",
) -> Scene:
    """Read one ``transforms.json`` of nerfstudio or instant-ngp.

    Intrinsics and distortion of the file or of a frame, fisheye and equirectangular lenses, masks
    and depth maps are used, and the split by names, where there is one; else every 8th frame by
    name tests. Other keys are in `Scene.unused`. The scene is centred where the cameras look,
    turned so that their mean up is z, and scaled so that they lie in the unit ball; what is farther
    is contracted.

    Raises:
        DataError: A file or image is missing or damaged, values are impossible, or a key means rays
            that are not known here.
    """
    path = folder / file
    document = _read(path)
    views, notes, unused = _views(document, path, allow_missing)
    # every 8th of the frames by name, as others split them, and not by the order in the file
    views.sort(key=lambda view: view.name)
    split, more = assemble(
        views, _lens(document, path), path, downsample=downsample, rescale=rescale
    )
    chosen = _named_splits(document, views, path)
    left = len(views) - sum(map(len, chosen)) if chosen else 0
    if left:
        more.append(f"{left} frames are in neither train_filenames nor test_filenames: not used")
    scene = unbounded(folder.name, "transforms", split, [*notes, *more], splits=chosen)
    return replace(scene, unused=tuple(unused))


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"load: {path} must exist, got nothing there") from error
    except ValueError as error:
        raise DataError(f"load: {path} must be JSON, got: {error}") from error
    frames = document.get("frames") if isinstance(document, dict) else None
    if not (isinstance(frames, list) and frames and all(isinstance(f, dict) for f in frames)):
        raise DataError(f"load: {path} must list frames, got {str(frames)[:60]}; is it a scene?")
    return dict(document)


def _views(
    document: dict[str, Any], path: Path, allow_missing: bool
) -> tuple[list[View], list[str], list[str]]:
    """The frames that have an image, what is to be noted, and keys that are not used."""
    frames = document["frames"]
    _refuse(document, path, "the file")
    views, absent, unused = [], [], {key for key in document if key not in _USED}
    for number, frame in enumerate(frames):
        where = f"frame {number} ({frame.get('file_path')})"
        _refuse(frame, path, where)
        unused |= {key for key in frame if key not in _USED}
        image = _file(path, frame, "file_path", where)
        if image is None:
            absent.append(frame["file_path"])
        else:
            views.append(_view({**document, **frame}, image, path, where))
    notes = []
    if absent:
        what = f"{len(absent)} of {len(frames)} frames of {path.name} have no image"
        if not allow_missing:
            raise DataError(
                f"load: {what}: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}; pass "
                "allow_missing=True (--allow-missing) to leave them out"
            )
        notes.append(what)
    return views, notes, sorted(unused)


def _view(values: dict[str, Any], image: Path, path: Path, where: str) -> View:
    optional = {}
    for name, keys in (("mask", ("mask_path",)), ("depth", ("depth_file_path", "depth_path"))):
        key = next((key for key in keys if values.get(key) is not None), None)
        optional[name] = found = key and _file(path, values, key, where)
        if key and found is None:
            raise DataError(f"load: {path}, {where}: {key} must exist, got {values[key]}")
    width, height = (_number(values, key, path, where, 0) for key in _SIZES)
    if not (width and height):
        width, height = _size_of(image)
    if not all(1 <= side <= 2**16 and side == int(side) for side in (width, height)):
        raise DataError(f"load: {path}, {where}: w and h must be pixels, got {width}, {height}")
    size = (int(width), int(height))
    return View(
        name=str(values["file_path"]),
        image=image,
        pose=_pose(values, path, where),
        intrinsics=_intrinsics(values, size, path, where),
        size=size,
        distortion=_distortion(values, path, where),
        mask=optional["mask"] or None,
        depth=optional["depth"] or None,
        unit=_number(values, "integer_depth_scale", path, where, 1e-3),
    )


def _file(path: Path, values: dict[str, Any], key: str, where: str) -> Path | None:
    """A file beside the JSON, by a name that may have back-slashes, and no suffix."""
    name = values.get(key)
    if not isinstance(name, str) or not name:
        raise DataError(f"load: {path}, {where}: {key} must be the name of a file, got {name!r}")
    return find_photo(path.parent / name.replace("\\", "/"))


def _size_of(image: Path) -> tuple[int, int]:
    from PIL import Image

    with reading(image, "an image"), Image.open(image) as opened:
        return opened.size


def _number(
    values: dict[str, Any], key: str, path: Path, where: str, default: float | None = None
) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"load: {path}, {where}: {key} must be a number, got {value!r}")
    return float(value)


def _pose(values: dict[str, Any], path: Path, where: str) -> torch.Tensor:
    try:
        pose = torch.tensor(values["transform_matrix"], dtype=torch.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"load: {path}, {where} must give transform_matrix, got: {error}"
        ) from error
    if tuple(pose.shape) not in ((4, 4), (3, 4)):
        raise DataError(
            f"load: {path}, {where}: transform_matrix must be 4 x 4 or 3 x 4, got "
            f"{list(pose.shape)}"
        )
    return torch.cat([pose[:3], torch.tensor([[0.0, 0.0, 0.0, 1.0]])])


def _intrinsics(
    values: dict[str, Any], size: tuple[int, int], path: Path, where: str
) -> list[float]:
    """fx, fy, cx, cy in pixels of an image of ``size``."""
    width, height = size
    if _lens(values, path) == "equirectangular":  # a whole turn across, half a turn down
        return [width / (2 * math.pi), height / math.pi, width / 2, height / 2]

    def focal(axis: str, side: int) -> float | None:
        if f"fl_{axis}" in values:
            return _number(values, f"fl_{axis}", path, where)
        for key, unit in ((f"camera_angle_{axis}", 1.0), (f"{axis}_fov", math.pi / 180)):
            if key in values:
                angle = _number(values, key, path, where) * unit
                if not 0 < angle < math.pi:
                    raise DataError(f"load: {path}, {where}: {key} must be an angle, got {angle}")
                return side / (2 * math.tan(angle / 2))
        return None

    fx = focal("x", width)
    if fx is None:
        raise DataError(
            f"load: {path}, {where} must give transform_matrix and a focal length, got no fl_x, "
            "camera_angle_x or x_fov"
        )
    fy = None if "fl_x" in values and "fl_y" not in values else focal("y", height)
    fy = fx if fy is None else fy
    middle = (("cx", width / 2), ("cy", height / 2))
    return [fx, fy, *(_number(values, key, path, where, half) for key, half in middle)]


def _distortion(values: dict[str, Any], path: Path, where: str) -> list[float]:
    lens, numbers = _lens(values, path), {}
    for key in _PLANE:
        numbers[key] = _number(values, key, path, where, 0.0)
    known = {"fisheye": ("k1", "k2", "k3", "k4"), "perspective": _PLANE}.get(lens, ())
    if lens == "perspective" and values.get("camera_model") != "FULL_OPENCV":
        known = _PLANE[:5]  # nerfstudio's k4 is another than OpenCV's
    extra = [key for key in _PLANE if numbers[key] and key not in known]
    if extra:
        raise DataError(
            f"load: {path}, {where}: {extra[0]} must be 0 for camera_model "
            f"{values.get('camera_model', lens)}, got {numbers[extra[0]]}; undistort the images, "
            "or name the model that has it (FULL_OPENCV, OPENCV_FISHEYE)"
        )
    return _parameters(values, lens, path, where) or [numbers[key] for key in known]


def _parameters(values: dict[str, Any], lens: Lens, path: Path, where: str) -> list[float]:
    """The list of nerfstudio's FISHEYE624: k0 to k5, p0, p1, s0 to s3."""
    given, wanted = values.get("distortion_params", []), 12 * (lens == "fisheye624")
    if not isinstance(given, list) or len(given) != wanted:
        raise DataError(
            f"load: {path}, {where}: distortion_params must be {wanted or 'no'} numbers for "
            f"camera_model {values.get('camera_model', lens)}, got {str(given)[:60]}"
        )
    return [_number({"distortion_params": v}, "distortion_params", path, where) for v in given]


def _lens(values: dict[str, Any], path: Path) -> Lens:
    model = values.get("camera_model")
    if model is not None and (not isinstance(model, str) or model not in _MODELS):
        raise DataError(
            f"load: camera_model of {path} must be one of {', '.join(_MODELS)}, got {model!r}; "
            "undistort the images"
        )
    lens: Lens = _MODELS[model] if model else "perspective"
    return next((named for key, named in _FLAGS.items() if values.get(key)), lens)


def _refuse(values: dict[str, Any], path: Path, where: str) -> None:
    for key, harmless in _REFUSED.items():
        if values.get(key, harmless) not in (harmless, None, [0.0, 0.0, 0.0, 0.0]):
            raise DataError(
                f"load: {path}, {where}: {key} must be absent, got {str(values[key])[:60]}; it "
                "means rays of another kind than these cameras have"
            )


def _named_splits(
    document: dict[str, Any], views: list[View], path: Path
) -> tuple[list[int], list[int]] | None:
    """Views in the lists of nerfstudio: of training, and of tests or else of validation."""
    keys = ("train_filenames", "test_filenames", "val_filenames")
    lists = [document.get(key) for key in keys]
    for key, names in zip(keys, lists, strict=True):
        if names is not None and not isinstance(names, list):
            raise DataError(f"load: {path}: {key} must be a list of names, got {str(names)[:40]}")
    train, test = lists[0], lists[1] or lists[2]
    if not train or not test:
        return None
    parts = [[k for k, view in enumerate(views) if view.name in set(names)]
             for names in (train, test)]  # fmt: skip
    if not all(parts):
        raise DataError(f"load: {path}: train_filenames and others must name frames, got none")
    return parts[0], parts[1]
