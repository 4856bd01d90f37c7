"""Find out what a folder holds, and load it; the loaders take the options of `load_scene`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from potstill.core import ConfigError, DataError, nearest, reading
from potstill.nerf.scenes.analytic import analytic
from potstill.nerf.scenes.colmap import find_model, load_colmap
from potstill.nerf.scenes.framing import box_of_points, framed
from potstill.nerf.scenes.llff import load_llff
from potstill.nerf.scenes.scene import Scene
from potstill.nerf.scenes.transforms import load_blender, load_transforms

__all__ = ["LAYOUTS", "detect", "load_scene"]

LAYOUTS = ("analytic", "blender", "llff", "transforms", "colmap")


def load_scene(
    data: str | os.PathLike[str] = "analytic",
    layout: str = "auto",
    *,
    downsample: float = 0,
    allow_missing: bool = False,
    rescale: bool = False,
    scale: float | None = None,
    center: Sequence[float] = (),
    aabb: Sequence[float] = (),
    near: float | None = None,
    far: float | None = None,
    bounded: bool = False,
    similarity: Tensor | Sequence[Sequence[float]] | None = None,
) -> Scene:
    """Load posed images.

    Lengths of ``center``, ``aabb``, ``near`` and ``far`` are those of the input.

    Args:
        data: A folder, or ``"analytic"`` for the scene that needs none.
        layout: One of `LAYOUTS`, or ``"auto"``.
        downsample: Factor, at least 1, by which images are smaller; 0 is the layout's default (8
            for LLFF, else 1).
        allow_missing: Skip frames whose image is absent.
        rescale: Scale intrinsics that are for images of another size.
        scale: Factor from lengths of the input to those of a field; None is the layout's choice,
            here and below.
        center: Point of the input that becomes the origin.
        aabb: Low and high corner of a box of the input, outside of which nothing is; the axes of
            the input are then kept.
        near: Distance at which rays start.
        far: Distance at which rays end, in a scene without end.
        bounded: In the place of ``aabb``: a box around the points of a COLMAP model.
        similarity: Map of the coordinates of the input to those of a field that is there already,
            [4 4], in the place of one that is made from the cameras.

    Raises:
        DataError: Nothing, or several layouts, in the folder; or its content is not usable.
        ConfigError: An unknown layout, or a number that makes no sense.

    Example:
        >>> load_scene("analytic", downsample=4).train.cameras.width
        12
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"load_scene: unknown layout {layout!r}; {nearest(layout, LAYOUTS)}")
    if downsample < 0 or 0 < downsample < 1:
        raise ConfigError(f"load_scene: downsample must be at least 1, or 0, got {downsample}")
    scene = _load(data, layout, downsample, allow_missing, rescale)
    if similarity is not None:
        scene = scene.aligned(torch.as_tensor(similarity))
    if bounded and aabb:
        raise ConfigError("load_scene: bounded must be left out with aabb, got both")
    box = box_of_points(scene) if bounded else aabb
    return framed(scene, scale=scale, center=center, aabb=box, near=near, far=far)


def _load(
    data: str | os.PathLike[str], layout: str, downsample: float, allow_missing: bool, rescale: bool
) -> Scene:
    if str(data) == "analytic" or layout == "analytic":
        return analytic(size=int(48 // max(downsample, 1)))
    folder = Path(data)
    chosen = detect(folder) if layout == "auto" else layout
    factor = downsample or 1
    with reading(folder, f"a scene in the layout {chosen!r}"):
        if chosen == "blender":
            return load_blender(folder, downsample=factor, allow_missing=allow_missing)
        if chosen == "llff":
            return load_llff(folder, downsample=downsample or 8)
        if chosen == "colmap":
            return load_colmap(folder, downsample=factor, allow_missing=allow_missing)
        return load_transforms(
            folder, downsample=factor, allow_missing=allow_missing, rescale=rescale
        )


def detect(folder: Path) -> str:
    """The layout of a folder.

    Raises:
        DataError: It does not exist, or holds none or several of the layouts.
    """
    if not folder.is_dir():
        raise DataError(
            f"detect: {folder} must be a folder, got "
            f"{'a file' if folder.exists() else 'nothing there'}"
        )
    signs = {
        "blender": (folder / "transforms_train.json").is_file(),
        "transforms": (folder / "transforms.json").is_file(),
        "llff": (folder / "poses_bounds.npy").is_file(),
        "colmap": find_model(folder) is not None,
    }
    found = [name for name, here in signs.items() if here]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"detect: {folder} must hold one layout, got {', '.join(found)}; choose with layout= "
            "(--layout)"
        )
    seen = sorted(path.name for path in folder.iterdir())[:8]
    raise DataError(
        f"detect: {folder} must hold transforms_train.json, transforms.json, poses_bounds.npy or a "
        f"COLMAP model, got {', '.join(seen) or 'nothing'}"
    )
