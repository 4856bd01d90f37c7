"""What a scene is like, and what is wrong with it, before anything is trained."""

from __future__ import annotations

import torch

from potstill.core import ConfigError
from potstill.core.command import say, table
from potstill.nerf.cameras import Cameras
from potstill.nerf.scenes.framing import box_of_points
from potstill.nerf.scenes.scene import Scene

__all__ = ["inspect_scene", "show_scene"]


def inspect_scene(scene: Scene) -> tuple[list[tuple[str, str]], list[str]]:
    """Facts about a scene by name, and warnings.

    Example:
        >>> from potstill.nerf import load_scene
        >>> facts, warnings = inspect_scene(load_scene("analytic", downsample=6))
        >>> dict(facts)["layout"], warnings
        ('analytic', [])
    """
    cameras, space = scene.train.cameras, scene.space
    places = cameras.poses[:, :3, 3]
    distance = places.norm(dim=1)
    fx, fy, cx, cy = (round(float(v), 2) for v in cameras.intrinsics[0])
    channels = "none" if scene.train.images is None else ("RGB", "RGBA")[scene.has_alpha]
    missed = _share_that_misses(scene)
    scale = float(torch.linalg.det(scene.similarity[:3, :3]).abs() ** (1 / 3))
    facts = [
        ("layout", scene.layout),
        ("views", f"{len(cameras)} to train, {len(scene.test.cameras)} to test"),
        ("images", f"{_sizes(cameras)} {channels}"),
        ("focal length, centre", f"{fx} {fy}, {cx} {cy} pixels"),
        ("lens", cameras.lens + ("" if cameras.distortion is None else ", distorted")),
        ("masked", f"{_masked(scene):.1%}"),
        ("depth maps", "none" if scene.train.depths is None else f"{_with_depth(scene)} views"),
        ("cameras, low corner", _triple(places.amin(0))),
        ("cameras, high corner", _triple(places.amax(0))),
        ("distance to the centre", f"{float(distance.min()):.3f} to {float(distance.max()):.3f}"),
        ("space", f"{space.kind} {_triple(space.low)} to {_triple(space.high)}"),
        ("scale applied to the input", f"{scale:.4g}"),
        ("points", _points(scene)),
        ("rays that miss the space", f"{missed:.1%}"),
        ("keys that are not used", ", ".join(scene.unused) or "none"),
    ]
    return facts, [*scene.notes, *_warnings(scene, missed)]


def show_scene(scene: Scene, **more: str) -> list[str]:
    """Print facts about a scene, with ``more`` of them, and its warnings, which are returned."""
    facts, warnings = inspect_scene(scene)
    table(scene.name, {**dict(facts), **more})
    for warning in warnings:
        say(f"warning: {warning}")
    return warnings


def _warnings(scene: Scene, missed: float) -> list[str]:
    cameras, space = scene.train.cameras, scene.space
    places = cameras.poses[:, :3, 3]
    found = []
    if missed > 0.5:
        found.append(
            f"{missed:.0%} of the rays never meet the box: poses of another convention, or a scale "
            f"that does not fit; the cameras are {float(places.norm(dim=1).mean()):.2f} from the "
            "centre"
        )
    low, high = places.new_tensor(space.low), places.new_tensor(space.high)
    inside = ((places > low) & (places < high)).all(1).float().mean()
    if space.kind == "box" and float(inside) == 1:
        found.append("all cameras are inside the box: the scene may be an unbounded one")
    found += _far_away(scene)
    cx, cy = (cameras.intrinsics[:, 2:] / cameras.extents).unbind(1)
    if bool(((cx - 0.5).abs() > 0.2).any() | ((cy - 0.5).abs() > 0.2).any()):
        found.append("a principal point is far from the middle: are cx and cy swapped?")
    images = scene.train.images
    if images is not None and images.shape[-1] == 4:
        alpha, color = images[..., 3:], images[..., :3].amax(-1, keepdim=True)
        soft = (alpha > 0) & (alpha < 250)
        if int(soft.sum()) > 100 and bool((color[soft] <= alpha[soft]).all()):
            found.append(
                "no colour exceeds its alpha: images look premultiplied, straight is meant"
            )
    return found


def _far_away(scene: Scene) -> list[str]:
    """Cameras that are much farther from the others' middle than these: wrong poses."""
    found = []
    for cameras in (scene.train.cameras, scene.test.cameras):
        places = cameras.poses[:, :3, 3]
        distance = (places - places.median(0).values).norm(dim=1)
        for view in (distance > 50 * distance.median().clamp(min=1e-6)).nonzero()[:, 0].tolist():
            name = cameras.names[view] if cameras.names else f"view {view}"
            found.append(
                f"{name} is {float(distance[view] / distance.median().clamp(min=1e-6)):.0f} times "
                "as far away as the other cameras: is its transform_matrix right?"
            )
    return found


def _sizes(cameras: Cameras) -> str:
    sizes = sorted({f"{width} x {height}" for width, height in cameras.extents.tolist()})
    return ", ".join(sizes[:4]) + (f" and {len(sizes) - 4} more sizes" if sizes[4:] else "")


def _masked(scene: Scene) -> float:
    """Share of the pixels of the photos that are not used."""
    masks, extents = scene.train.masks, scene.train.cameras.extents
    return 0.0 if masks is None else 1 - float(masks.sum()) / float(extents.prod(1).sum())


def _points(scene: Scene) -> str:
    """How many a sparse reconstruction has, and the box of ``--bounded``."""
    if scene.points is None:
        return "none"
    try:
        box = box_of_points(scene)
    except ConfigError:
        return f"{len(scene.points):,}"
    corners = f"{_triple(box[:3])} to {_triple(box[3:])}"
    return f"{len(scene.points):,}, a box around them: {corners} in the data (--bounded)"


def _with_depth(scene: Scene) -> int:
    depths = scene.train.depths
    return 0 if depths is None else int((depths > 0).flatten(1).any(1).sum())


def _share_that_misses(scene: Scene) -> float:
    draw = torch.Generator().manual_seed(0)
    cameras = scene.train.cameras
    view = torch.randint(len(cameras), (4096,), generator=draw)
    width, height = cameras.extents[view].unbind(1)
    x = torch.rand(4096, generator=draw) * width
    y = torch.rand(4096, generator=draw) * height
    rays = scene.space.trace(*cameras.rays(view, x, y))
    return float((rays.far <= rays.base).float().mean())


def _triple(values: object) -> str:
    return " ".join(f"{float(v):.2f}" for v in values)  # type: ignore[attr-defined]
