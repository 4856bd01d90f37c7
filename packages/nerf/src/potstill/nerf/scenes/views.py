"""Views as files describe them, and the cameras, images, masks and depths that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core import DataError
from potstill.nerf.cameras import Cameras
from potstill.nerf.lenses import COEFFICIENTS, Lens
from potstill.nerf.scenes.photos import read_depth, read_mask, read_photos
from potstill.nerf.scenes.scene import Split

__all__ = ["View", "assemble"]


@dataclass
class View:
    """One photo with its camera.

    Attributes:
        name: Name in messages.
        image: The photo.
        pose: Camera to world, OpenGL's axes, [4 4].
        intrinsics: fx, fy, cx, cy in pixels of an image of ``size``.
        size: Width and height that the intrinsics are for.
        distortion: Coefficients of the lens, as many as are not zero; empty for none.
        mask: Image that is black where the photo is not to be used.
        depth: Depth map.
        unit: Length of a unit of the depth map.
    """

    name: str
    image: Path
    pose: Any
    intrinsics: Sequence[float]
    size: tuple[int, int]
    distortion: Sequence[float] = field(default=())
    mask: Path | None = None
    depth: Path | None = None
    unit: float = 1e-3


def assemble(
    views: Sequence[View], lens: Lens, source: Path, *, downsample: float = 1, rescale: bool = False
) -> tuple[Split, list[str]]:
    """Cameras and images of views, in the coordinates of the file, and what is to be noted.

    Raises:
        DataError: No views; a file is damaged; an image has another size than its intrinsics are
            for, without ``rescale``.
    """
    if not views:
        raise DataError(f"load: {source} must name images that exist, got none")
    images, sizes, files = read_photos([view.image for view in views], downsample)
    declared = torch.tensor([view.size for view in views])
    _check_sizes(views, declared, files, source, rescale)
    least, most = min(COEFFICIENTS[lens], default=0), max(COEFFICIENTS[lens], default=0)
    distortion = [[*view.distortion, *[0.0] * (most - len(view.distortion))] for view in views]
    coefficients = torch.tensor(distortion)
    coefficients = coefficients if bool(coefficients[:, least:].any()) else coefficients[:, :least]
    width, height = declared.amax(0).tolist()
    cameras = Cameras(
        torch.stack([torch.as_tensor(view.pose, dtype=torch.float32) for view in views]),
        torch.tensor([list(map(float, view.intrinsics)) for view in views]),
        width,
        height,
        distortion=coefficients if bool(coefficients.any()) else None,
        names=tuple(view.name for view in views),
        lens=lens,
        sizes=declared,
    ).fitted(sizes)
    masks, folded = _masks(views, cameras)
    notes = _repeated(views)
    if folded:
        notes.append(f"the distortion folds over {folded:.1%} of the pixels: they are masked")
    return Split(cameras, images, masks, _depths(views, cameras)), notes


def _check_sizes(
    views: Sequence[View], declared: Tensor, files: Tensor, source: Path, rescale: bool
) -> None:
    other = (declared != files).any(1).nonzero()[:, 0].tolist()
    if other and not rescale:
        (w, h), (width, height) = declared[other[0]].tolist(), files[other[0]].tolist()
        raise DataError(
            f"load: {source} says images are {w} x {h}, they are {width} x {height}; pass "
            "rescale=True (--rescale-intrinsics) to scale the intrinsics; so are "
            f"{len(other)} of {len(views)}, the first is {views[other[0]].name}"
        )


def _masks(views: Sequence[View], cameras: Cameras) -> tuple[Tensor | None, float]:
    """What is to be used of the canvas, None for all; and which share of the pixels is folded."""
    masks = torch.zeros(len(views), cameras.height, cameras.width, dtype=torch.bool)
    known: dict[tuple[float, ...], Tensor] = {}  # most captures have one lens
    folded = total = 0
    for k, view in enumerate(views):
        width, height = cameras.size(k)
        key = (width, height, *cameras.intrinsics[k].tolist(), *view.distortion)
        if key not in known:
            known[key] = cameras.reached(k)
        folded, total = folded + int((~known[key]).sum()), total + width * height
        mask = known[key]
        if view.mask is not None:
            mask = mask & read_mask(view.mask, (width, height))
        masks[k, :height, :width] = mask
    if not bool(masks.any()):
        raise DataError("load: masks must leave pixels, got none; are they black where to look?")
    return (None if bool(masks.all()) else masks), folded / total


def _depths(views: Sequence[View], cameras: Cameras) -> Tensor | None:
    """Distances along the rays, 0 where unknown; files give those along the optical axis."""
    if not any(view.depth for view in views):
        return None
    depths = torch.zeros(len(views), cameras.height, cameras.width)
    for k, view in enumerate(views):
        width, height = size = cameras.size(k)
        if view.depth is not None:
            depth = read_depth(view.depth, size, view.unit)
            along = cameras.ahead(k) if cameras.lens == "perspective" else 1.0
            depths[k, :height, :width] = depth / along
    return depths


def _repeated(views: Sequence[View]) -> list[str]:
    counts = Counter(view.image for view in views)
    twice = sorted({view.name for view in views if counts[view.image] > 1})
    return [f"frames named more than once: {', '.join(twice[:5])}"] if twice else []
