"""Forward-facing scenes in the layout of LLFF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from potstill.core import DataError, is_leftover
from potstill.nerf.cameras import Cameras
from potstill.nerf.scenes.scene import Scene, every_eighth, read_images
from potstill.nerf.scenes.similarity import recentering
from potstill.nerf.space import Space

__all__ = ["load_llff"]

_SUFFIXES = (".png", ".jpg", ".jpeg")


def load_llff(folder: Path, *, downsample: int = 8) -> Scene:
    """Read ``poses_bounds.npy`` and ``images_{downsample}``, in normalised device coordinates.

    Poses are recentred to their mean and scaled so that the nearest depth lies at 4/3, as in NeRF;
    every 8th view tests.

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
    images = _images(folder, downsample)
    if len(images) != len(table):
        raise DataError(
            f"load_llff: {path} must have one row for each image, got {len(table)} rows and "
            f"{len(images)} images in {images[0].parent}"
        )
    near, far = table[:, 15].min(), table[:, 16].max()
    if not 0 < near < far:
        raise DataError(f"load_llff: near must be below far in {path}, got {near} and {far}")
    pixels = read_images(images)
    matrix = torch.from_numpy(table[:, :15].reshape(-1, 3, 5))
    poses = torch.eye(4, dtype=torch.float64).repeat(len(table), 1, 1)
    # columns are down, right, back, position
    poses[:, :3] = torch.stack(
        [matrix[..., 1], -matrix[..., 0], matrix[..., 2], matrix[..., 3]], dim=-1
    )
    full_height, full_width, focal = matrix[0, :, 4].tolist()
    intrinsics = torch.tensor([focal, focal, full_width / 2, full_height / 2])
    cameras = Cameras(
        poses.float(),
        intrinsics.repeat(len(table), 1),
        int(full_width),
        int(full_height),
        names=tuple(image.name for image in images),
    ).resized(pixels.shape[2], pixels.shape[1])
    similarity = recentering(poses, 1 / (0.75 * near))
    cameras = cameras.moved(similarity)
    train, test = every_eighth(cameras, pixels)
    fx, fy = cameras.intrinsics[0, :2].tolist()
    space = Space(
        "ndc",
        (-1.5, -1.67, -1.0),
        (1.5, 1.67, 1.0),
        near=1.0,
        steps=64,  # 27 or so from near to infinity: rays teach more than samples of few rays
        lens=(2 * fx / cameras.width, 2 * fy / cameras.height),
    )
    return Scene(folder.name, "llff", train, test, space, similarity)


def _images(folder: Path, downsample: int) -> list[Path]:
    source = folder / (f"images_{downsample}" if downsample > 1 else "images")
    if not source.is_dir():
        there = sorted(p.name for p in folder.glob("images*") if p.is_dir())
        raise DataError(
            f"load_llff: {source} must be a folder of images, got nothing there; there are "
            f"{', '.join(there) or 'no images* folders'}: choose downsample (--downsample) by them"
        )
    images = sorted(p for p in source.iterdir() if p.suffix.lower() in _SUFFIXES)
    images = [path for path in images if not is_leftover(path)]
    if not images:
        raise DataError(f"load_llff: {source} must hold images, got none")
    return images
