"""Scenes in JSON: the blender layout, and ``transforms.json`` of instant-ngp and nerfstudio."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core import DataError
from potstill.nerf.cameras import Cameras
from potstill.nerf.scenes.scene import Scene, Split, read_images, unbounded
from potstill.nerf.space import Space

__all__ = ["load_blender", "load_transforms"]


def load_blender(folder: Path, *, downsample: int = 1, allow_missing: bool = False) -> Scene:
    """Read ``transforms_{train,test}.json`` with ``camera_angle_x``, images usually RGBA.

    The box is [-1.5, 1.5]^3, which holds every scene of NeRF-Synthetic.

    Raises:
        DataError: A file or image is missing or damaged, or values are impossible.
    """
    splits = {}
    for name in ("train", "test"):
        path = folder / f"transforms_{name}.json"
        document = _read(path)
        splits[name], _ = _split(document, path, downsample, allow_missing, rescale=True)
    space = Space("box", near=0.05)
    return Scene(folder.name, "blender", splits["train"], splits["test"], space)


def load_transforms(
    folder: Path,
    *,
    downsample: int = 1,
    allow_missing: bool = False,
    rescale: bool = False,
    file: str = "transforms.json",
) -> Scene:
    """Read one ``transforms.json`` with intrinsics and distortion; every 8th frame tests.

    The scene is centred where the cameras look, turned so that their mean up is z, and scaled so
    that they lie in the unit ball; what is farther is contracted.

    Raises:
        DataError: A file or image is missing or damaged, or values are impossible.
    """
    path = folder / file
    document = _read(path)
    # every 8th of the frames by name, as others split them, and not by the order in the file
    document["frames"].sort(key=lambda frame: str(frame.get("file_path")))
    split, notes = _split(document, path, downsample, allow_missing, rescale)
    return unbounded(folder.name, "transforms", split, notes)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"load: {path} must exist, got nothing there") from error
    except ValueError as error:
        raise DataError(f"load: {path} must be JSON, got: {error}") from error
    frames = document.get("frames") if isinstance(document, dict) else None
    if not (isinstance(frames, list) and frames and all(isinstance(f, dict) for f in frames)):
        raise DataError(f"load: {path} must list frames, got {str(frames)[:60]}; is it a scene?")
    return dict(document)


def _split(
    document: dict[str, Any], path: Path, downsample: int, allow_missing: bool, rescale: bool
) -> tuple[Split, tuple[str, ...]]:
    frames = document["frames"]
    found = [(frame, _image_path(path, frame)) for frame in frames]
    absent = [frame["file_path"] for frame, image in found if image is None]
    notes: tuple[str, ...] = ()
    if absent:
        what = f"{len(absent)} of {len(frames)} frames of {path.name} have no image"
        if not allow_missing:
            raise DataError(
                f"load: {what}: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}; pass "
                "allow_missing=True (--allow-missing) to leave them out"
            )
        notes = (what,)
    present = [(frame, image) for frame, image in found if image is not None]
    if not present:
        raise DataError(f"load: {path} must name images that exist, got none of {len(frames)}")
    images = read_images([image for _, image in present], downsample)
    cameras = _cameras(document, [frame for frame, _ in present], images, downsample, path, rescale)
    return Split(cameras, images), notes


def _image_path(path: Path, frame: dict[str, Any]) -> Path | None:
    named = path.parent / str(frame.get("file_path"))
    return next((p for p in (named, named.with_name(named.name + ".png")) if p.is_file()), None)


def _cameras(
    document: dict[str, Any],
    frames: list[dict[str, Any]],
    images: Tensor,
    downsample: int,
    path: Path,
    rescale: bool,
) -> Cameras:
    height, width = images.shape[1] * downsample, images.shape[2] * downsample
    declared = (int(document.get("w", width)), int(document.get("h", height)))
    if declared != (width, height) and not rescale:
        raise DataError(
            f"load: {path} says images are {declared[0]} x {declared[1]}, they are {width} x "
            f"{height}; pass rescale=True (--rescale-intrinsics) to scale the intrinsics"
        )
    names = tuple(str(frame.get("file_path")) for frame in frames)
    try:
        poses = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float32)
        rows = [_intrinsics({**document, **frame}, declared) for frame in frames]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"load: {path} must give transform_matrix and a focal length, got: {error}"
        ) from error
    keys = ("k1", "k2", "p1", "p2")
    lens = [[float({**document, **frame}.get(key, 0)) for key in keys] for frame in frames]
    distortion = torch.tensor(lens)
    cameras = Cameras(
        poses,
        torch.tensor(rows),
        *declared,
        distortion=distortion if bool(distortion.any()) else None,
        names=names,
    )
    return cameras.resized(images.shape[2], images.shape[1])


def _intrinsics(values: dict[str, Any], size: tuple[int, int]) -> list[float]:
    """fx, fy, cx, cy in pixels of an image of ``size``."""
    width, height = size
    if "fl_x" in values:
        fx = float(values["fl_x"])
    elif "camera_angle_x" in values:
        fx = width / (2 * math.tan(float(values["camera_angle_x"]) / 2))
    else:
        raise KeyError("no fl_x and no camera_angle_x")
    fy = float(values.get("fl_y", fx))
    return [fx, fy, float(values.get("cx", width / 2)), float(values.get("cy", height / 2))]
