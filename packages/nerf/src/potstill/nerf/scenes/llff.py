"""Scenes in the layout of LLFF: forward-facing, or photographed from around."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from potstill.core import DataError, is_leftover
from potstill.nerf.scenes.framing import every_eighth, unbounded
from potstill.nerf.scenes.photos import SUFFIXES
from potstill.nerf.scenes.scene import Scene
from potstill.nerf.scenes.similarity import recentering
from potstill.nerf.scenes.views import View, assemble
from potstill.nerf.space import Space

__all__ = ["load_llff"]


def load_llff(folder: Path, *, downsample: float = 8) -> Scene:
    """Read ``poses_bounds.npy`` and ``images_{downsample}``, or ``images`` and reduce them.

    Where all cameras look within 60 degrees of their mean: in normalised device coordinates. Poses
    are then recentred to their mean and scaled so that the nearest depth lies at 4/3, as in NeRF.
    Else the scene is one without end, contracted. Every 8th view tests.

    Raises:
        DataError: Files are missing or do not fit together, or near is not below far.
    """
    path = folder / "poses_bounds.npy"
    try:
        table = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"load_llff: {path} must be a NumPy array, got: {error}") from error
    if table.ndim != 2 or table.shape[1] != 17:
        raise DataError(f"load_llff: {path} must be [views, 17], got {list(table.shape)}")
    images, factor = _images(folder, downsample)
    if len(images) != len(table):
        raise DataError(
            f"load_llff: {path} must have one row for each image, got {len(table)} rows and "
            f"{len(images)} images in {images[0].parent}"
        )
    near, far = float(table[:, 15].min()), float(table[:, 16].max())
    if not 0 < near < far:
        raise DataError(f"load_llff: near must be below far in {path}, got {near} and {far}")
    matrix = torch.from_numpy(table[:, :15].reshape(-1, 3, 5))
    poses = torch.eye(4, dtype=torch.float64).repeat(len(table), 1, 1)
    # columns are down, right, back, position
    poses[:, :3] = torch.stack(
        [matrix[..., 1], -matrix[..., 0], matrix[..., 2], matrix[..., 3]], dim=-1
    )
    views = []
    for image, pose, (full_height, full_width, focal) in zip(
        images, poses, matrix[..., 4].tolist(), strict=True
    ):
        size = (round(full_width), round(full_height))
        views.append(View(image.name, image, pose, (focal, focal, size[0] / 2, size[1] / 2), size))
    split, notes = assemble(views, "perspective", path, downsample=factor, rescale=True)
    backs = torch.nn.functional.normalize(poses[:, :3, 2], dim=1)
    if float((backs @ torch.nn.functional.normalize(backs.mean(0), dim=0)).min()) < 0.5:
        notes.append("the cameras look around: a scene without end, not a forward-facing one")
        return unbounded(folder.name, "llff", split, notes, limits=(0.5 * near, 2 * far))
    similarity = recentering(poses, 1 / (0.75 * near))
    train, test = every_eighth(split.moved(similarity))
    cameras = train.cameras
    fx, fy = cameras.intrinsics[0, :2].tolist()
    space = Space(
        "ndc",
        (-1.5, -1.67, -1.0),
        (1.5, 1.67, 1.0),
        near=1.0,
        steps=64,  # 27 or so from near to infinity: rays teach more than samples of few rays
        lens=(2 * fx / cameras.width, 2 * fy / cameras.height),
    )
    return Scene(folder.name, "llff", train, test, space, similarity, notes=tuple(notes))


def _images(folder: Path, downsample: float) -> tuple[list[Path], float]:
    """Images, and the factor by which they are still to be reduced."""
    source, factor = folder / f"images_{downsample:g}", 1.0
    if downsample == 1 or (not source.is_dir() and (folder / "images").is_dir()):
        source, factor = folder / "images", downsample
    if not source.is_dir():
        there = sorted(p.name for p in folder.glob("images*") if p.is_dir())
        raise DataError(
            f"load_llff: {source} must be a folder of images, got nothing there; there are "
            f"{', '.join(there) or 'no images* folders'}: choose downsample (--downsample) by them"
        )
    images = sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES)
    images = [path for path in images if not is_leftover(path)]
    if not images:
        raise DataError(f"load_llff: {source} must hold images, got none")
    return images, factor
