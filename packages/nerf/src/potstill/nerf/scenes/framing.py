"""Frames of scenes: where the origin lies, how long a unit is, where rays start and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from potstill.core import ConfigError
from potstill.nerf.cameras import Cameras
from potstill.nerf.scenes.scene import Scene, Split
from potstill.nerf.scenes.similarity import normalizing, scale_of
from potstill.nerf.space import Space

__all__ = ["box_of_points", "every_eighth", "framed", "unbounded"]

_FEW = 100  # points that say nothing about a scene


def framed(
    scene: Scene,
    *,
    scale: float | None = None,
    center: Sequence[float] = (),
    aabb: Sequence[float] = (),
    near: float | None = None,
    far: float | None = None,
) -> Scene:
    """A scene with another frame than its loader chose; lengths are those of the input.

    Args:
        scene: A scene as loaded.
        scale: Factor from lengths of the input to those of the field.
        center: Point of the input that becomes the origin.
        aabb: Low and high corner of a box of the input, outside of which nothing is; the axes
            of the input are then kept.
        near: Distance at which rays start.
        far: Distance at which rays end, in a scene without end.

    Raises:
        ConfigError: A number that makes no sense, or that the space does not have.
    """
    numbers = {"center": (center, 3), "aabb": (aabb, 6)}
    for name, (given, count) in numbers.items():
        if len(given) not in (0, count):
            raise ConfigError(f"load_scene: {name} must be {count} numbers, got {len(given)}")
    if scale is not None and not scale > 0:
        raise ConfigError(f"load_scene: scale must be positive, got {scale}")
    if scene.space.kind == "ndc" and not aabb:
        if any(value is not None for value in (scale, near, far)) or center:
            raise ConfigError(
                "load_scene: a forward-facing scene has its own frame, got another scale, center, "
                "near or far; name a box with aabb (--aabb) to leave it"
            )
        return scene
    if far is not None and (aabb or scene.space.kind == "box"):
        raise ConfigError("load_scene: far must be left out, got one; rays end at the box")
    before, space = scene.similarity, scene.space
    if aabb or center or scale is not None:
        scene = scene.aligned(_frame(before, scale, center, aabb))
    factor = scale_of(scene.similarity)
    if aabb:
        corners = torch.tensor([aabb[:3], aabb[3:]]).double()
        low, high = (
            corners @ scene.similarity[:3, :3].double().T + scene.similarity[:3, 3].double()
        ).tolist()
        space = Space("box", tuple(low), tuple(high), near=0.05)
    grown = factor / scale_of(before)  # the scene keeps its own near and far
    own = space.near if aabb else space.near * grown
    near = own if near is None else near * factor
    far = space.far * grown if far is None else far * factor
    return replace(scene, space=replace(space, near=near, far=far))


def box_of_points(scene: Scene) -> tuple[float, ...]:
    """Low and high corner of a box of the input around the points of a sparse reconstruction.

    Between the 1st and the 99th percentile on each axis of the input, and a tenth more on all
    sides: single points far outside are errors of matching.

    Raises:
        ConfigError: The scene has fewer than 100 points.
    """
    if scene.points is None or len(scene.points) < _FEW:
        count = 0 if scene.points is None else len(scene.points)
        raise ConfigError(
            f"load_scene: bounded needs at least {_FEW} points of a COLMAP model, got {count}; "
            "name the box with aabb (--aabb)"
        )
    back = torch.linalg.inv(scene.similarity.double())
    points = scene.points.double() @ back[:3, :3].T + back[:3, 3]
    ordered = points.sort(0).values
    low, high = ordered[len(points) // 100], ordered[-1 - len(points) // 100]
    more = (high - low) / 10
    return (*(low - more).tolist(), *(high + more).tolist())


def every_eighth(views: Split) -> tuple[Split, Split]:
    """Training and test split where the files name none: every 8th view, from the first, tests."""
    index = torch.arange(len(views.cameras))
    return views[index[index % 8 != 0]], views[index[index % 8 == 0]]


def unbounded(
    name: str,
    layout: str,
    views: Split,
    notes: Sequence[str],
    *,
    splits: tuple[list[int], list[int]] | None = None,
    points: Tensor | None = None,
    limits: tuple[float, float] | None = None,
) -> Scene:
    """A scene without end: normalised, contracted.

    Args:
        name: Name of the scene.
        layout: Name of the loader.
        views: All views, in the coordinates of the input.
        notes: Remarks on unusual input.
        splits: Views to learn from and to be judged by; every 8th tests when None.
        points: Points of a sparse reconstruction, [P 3]: they say where the scene lies and how near
            and far it reaches.
        limits: Nearest and farthest distance in the input, where those are known.
    """
    seen = points if points is not None and len(points) >= _FEW else None
    similarity = normalizing(views.cameras.poses, seen)
    moved, scale = views.moved(similarity), scale_of(similarity)
    train, test = every_eighth(moved) if splits is None else (moved[splits[0]], moved[splits[1]])
    if seen is not None:
        limits = _depth_range(views.cameras, seen)
    near, far = (0.1, 40.0) if limits is None else (limits[0] * scale, limits[1] * scale)
    space = Space("contracted", (-1.0,) * 3, (1.0,) * 3, near=near, far=far, steps=128)
    if points is not None:
        points = (points.double() @ similarity[:3, :3].double().T + similarity[:3, 3]).float()
    return Scene(name, layout, train, test, space, similarity, notes=tuple(notes), points=points)


def _depth_range(cameras: Cameras, points: Tensor) -> tuple[float, float]:
    """Between half the depth of the nearest points that cameras see, and twice the farthest."""
    few = points[:: max(len(points) // 2000, 1)].float()
    poses = cameras.poses
    distance = torch.cdist(poses[:, :3, 3], few)
    ahead = -(few[None] - poses[:, None, :3, 3]) @ poses[:, :3, 2:3]
    seen = distance[ahead[..., 0] > 0.5 * distance]  # within 60 degrees of the axis
    if not len(seen):
        seen = distance.flatten()
    few = seen[:: max(len(seen) // 1_000_000, 1)]
    low, high = torch.quantile(few, torch.tensor([0.001, 0.999])).tolist()
    return max(low / 2, high / 1e4), high * 2


def _frame(
    similarity: Tensor, scale: float | None, center: Sequence[float], aabb: Sequence[float]
) -> Tensor:
    """A similarity with other numbers; a box keeps the axes and becomes 2 long at most."""
    before = similarity.double()
    factor = scale_of(before)
    turn, middle = before[:3, :3] / factor, -torch.linalg.solve(before[:3, :3], before[:3, 3])
    if aabb:
        low, high = torch.tensor([aabb[:3], aabb[3:]]).double()
        turn, middle = torch.eye(3).double(), (low + high) / 2
        factor = 2 / float((high - low).max().clamp(min=1e-12))
    middle = torch.tensor(center).double() if center else middle
    frame = torch.eye(4).double()
    frame[:3, :3] = (scale or factor) * turn
    frame[:3, 3] = -(frame[:3, :3] @ middle)
    return frame
