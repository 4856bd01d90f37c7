"""Pose priors: where virtual cameras stand when there is no photo left, and their lens."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError, DataError, atomic, nearest
from potstill.nerf.cameras import Cameras, look_at
from potstill.nerf.space import Space

__all__ = ["BoxPrior", "NearPrior", "PosePrior", "SpherePrior", "load_prior", "prior_of"]


@dataclass(eq=False)
class PosePrior(ABC):
    """A distribution of camera poses in the coordinates of a field, and the lenses they have.

    Source: Fang et al., "One is All: Bridging the Gap Between Neural Radiance Fields
    Architectures with Progressive Volume Distillation", AAAI 2023: a student is shown what the
    teacher renders from poses that nobody photographed.

    Args:
        lens: Intrinsics, distortion and image size; the poses in it do not matter. Each ray takes
            one of its lenses.
    """

    kind: ClassVar[str]

    lens: Cameras

    def __post_init__(self) -> None:
        lens = self.lens
        if len(lens) < 1:
            raise ConfigError(f"{type(self).__name__}: lens must hold a camera, got none")
        self.lens = replace(lens, poses=torch.eye(4).repeat(len(lens), 1, 1), names=())

    @abstractmethod
    def poses(self, count: int, draw: torch.Generator) -> Float[Tensor, "count 4 4"]:
        """Draw poses, camera to world."""

    def cameras(self, count: int, draw: torch.Generator) -> Cameras:
        """Draw whole cameras, e.g. to evaluate a student from."""
        poses = self.poses(count, draw)
        lens = torch.arange(count) % len(self.lens)
        return replace(self.lens[lens.tolist()], poses=poses)

    def moved(self, poses: Tensor, draw: torch.Generator) -> Tensor:
        """Poses near the given ones, [P 4 4]: turned by up to 9 degrees about target or origin.

        Source: Fang et al., "PVD-AL", arXiv 2304.04012: how hard poses come back.
        """
        angles = (torch.rand(len(poses), 3, generator=draw) * 2 - 1) * (math.pi / 20)
        center = torch.tensor(getattr(self, "target", (0.0, 0.0, 0.0)))
        return about(center, turns(angles)) @ poses

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the lens."""
        return {f.name: list(getattr(self, f.name)) for f in fields(self) if f.name != "lens"}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, for `load_prior` and for people."""
        lens = self.lens
        document = {
            "kind": self.kind,
            **self.as_dict(),
            "lens": {
                "width": lens.width,
                "height": lens.height,
                "intrinsics": lens.intrinsics.tolist(),
                "distortion": None if lens.distortion is None else lens.distortion.tolist(),
                "model": lens.lens,
                "sizes": None if lens.sizes is None else lens.sizes.tolist(),
            },
        }
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")
        return Path(path)


@dataclass(eq=False)
class SpherePrior(PosePrior):
    """Cameras on a shell around a point, which they look at; for objects.

    Args:
        lens: As in `PosePrior`.
        radius: Least and greatest distance.
        elevation: Lowest and highest angle above the horizon, radians in (-pi/2, pi/2).
        azimuth: Range of the angle around ``up``, radians; all around by default.
        target: Point that they look at.
        up: Direction of their up.

    Raises:
        ConfigError: A range that is empty or impossible.

    Example:
        >>> from potstill.nerf import pinhole
        >>> prior = SpherePrior(pinhole(100, 100, angle=0.69), radius=(4.0, 4.0))
        >>> prior.poses(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 4, 4])
    """

    kind = "sphere"

    radius: tuple[float, float]
    elevation: tuple[float, float] = (0.0, 1.4)
    azimuth: tuple[float, float] = (-math.pi, math.pi)
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.radius[0] <= self.radius[1]:
            raise ConfigError(f"SpherePrior: radius must be a positive range, got {self.radius}")
        if not -math.pi / 2 < self.elevation[0] <= self.elevation[1] < math.pi / 2:
            raise ConfigError(
                f"SpherePrior: elevation must be a range within (-pi/2, pi/2), got {self.elevation}"
            )
        if not self.azimuth[0] <= self.azimuth[1]:
            raise ConfigError(f"SpherePrior: azimuth must be a range, got {self.azimuth}")

    def poses(self, count: int, draw: torch.Generator) -> Tensor:
        """Uniform in azimuth, in the sine of the elevation (so in area) and in distance."""
        u = torch.rand(3, count, generator=draw)
        low, high = map(math.sin, self.elevation)
        turn = _between(u[0], self.azimuth)
        lift = low + (high - low) * u[1]
        flat = (1 - lift**2).sqrt()
        direction = torch.stack([flat * turn.cos(), flat * turn.sin(), lift], dim=1)
        up, target = torch.tensor(self.up), torch.tensor(self.target)
        place = target + _between(u[2], self.radius)[:, None] * (direction @ _towards(up).T)
        return torch.stack([look_at(p, target, up) for p in place])


@dataclass(eq=False)
class BoxPrior(PosePrior):
    """Cameras anywhere in a box that look at a point; for scenes photographed from the front.

    Args:
        lens: As in `PosePrior`.
        low: Low corner.
        high: High corner.
        target: Point that they look at.
        up: Direction of their up.

    Raises:
        ConfigError: A corner above the other, or a target in the box.
    """

    kind = "box"

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    target: tuple[float, float, float] = (0.0, 0.0, -4.0)
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high, target = self.low, self.high, self.target
        if not all(a <= b for a, b in zip(low, high, strict=True)):
            raise ConfigError(f"BoxPrior: low must not be above high, got {low} and {high}")
        if all(a <= t <= b for a, t, b in zip(low, target, high, strict=True)):
            raise ConfigError(f"BoxPrior: target must lie outside the box, got {target}")

    def poses(self, count: int, draw: torch.Generator) -> Tensor:
        """Uniform in the box."""
        low, high = torch.tensor(self.low), torch.tensor(self.high)
        target, up = torch.tensor(self.target), torch.tensor(self.up)
        place = low + (high - low) * torch.rand(count, 3, generator=draw)
        return torch.stack([look_at(p, target, up) for p in place])


class NearPrior(PosePrior):
    """Cameras near those of a list; for any scene whose poses are known and whose photos are not.

    Args:
        cameras: The list; its lenses are used too.
        spread: Largest move, as a share of the distance to the nearest neighbour.
        angle: Largest turn about each axis, radians.

    Raises:
        ConfigError: A negative number.
    """

    kind = "near"

    def __init__(self, cameras: Cameras, spread: float = 0.5, angle: float = 0.05) -> None:
        super().__init__(cameras)
        if spread < 0 or angle < 0:
            raise ConfigError(
                f"NearPrior: spread and angle must not be negative, got {spread} and {angle}"
            )
        self.list, self.spread, self.angle = cameras.poses, spread, angle
        places = self.list[:, :3, 3]
        apart = torch.cdist(places, places) + torch.eye(len(places)) * 1e9
        nearest = apart.amin(1)
        self.reach = torch.where(nearest < 1e8, nearest, torch.zeros(())) * spread

    def poses(self, count: int, draw: torch.Generator) -> Tensor:
        """One of the list each, moved and turned a little."""
        chosen = torch.randint(len(self.list), (count,), generator=draw)
        return self._shaken(self.list[chosen], self.reach[chosen], draw)

    def moved(self, poses: Tensor, draw: torch.Generator) -> Tensor:
        """Moved and turned a little more: nothing says that the scene is around the origin."""
        return self._shaken(poses, self.reach.mean().expand(len(poses)), draw)

    def _shaken(self, poses: Tensor, reach: Tensor, draw: torch.Generator) -> Tensor:
        step, angles = torch.rand(2, len(poses), 3, generator=draw) * 2 - 1
        poses = poses.clone()
        poses[:, :3, :3] = poses[:, :3, :3] @ turns(angles * self.angle)
        poses[:, :3, 3] += step * reach[:, None]
        return poses

    def as_dict(self) -> dict[str, Any]:
        """Poses, spread and angle."""
        return {"poses": self.list.tolist(), "spread": self.spread, "angle": self.angle}


def prior_of(cameras: Cameras, space: Space) -> PosePrior:
    """A prior that covers where cameras were: a sphere, a box, or their neighbourhood.

    A box scene gets a sphere with the 5th to 95th percentile of the elevations and all distances
    (as PVD-AL does), normalised device coordinates the box of the centres, and an unbounded scene
    the neighbourhood of its cameras.
    """
    lens = (
        cameras
        if len(cameras.intrinsics.unique(dim=0)) > 1 or cameras.sizes is not None
        else cameras[:1]
    )
    places = cameras.poses[:, :3, 3]
    if space.kind == "ndc":
        low, high = places.amin(0), places.amax(0)
        ahead = -cameras.poses[:, :3, 2].mean(0)
        target = places.mean(0) + 4 * space.near * ahead / ahead.norm()
        up = cameras.poses[:, :3, 1].mean(0)
        return BoxPrior(lens, _triple(low), _triple(high), _triple(target), _triple(up))
    if space.kind == "contracted":
        return NearPrior(cameras)
    distance = places.norm(dim=1)
    lift = torch.asin((places[:, 2] / distance.clamp(min=1e-6)).clamp(-0.99, 0.99))
    low, high = torch.quantile(lift, torch.tensor([0.05, 0.95])).tolist()
    return SpherePrior(lens, (float(distance.min()), float(distance.max())), (low, high))


def load_prior(path: str | os.PathLike[str]) -> PosePrior:
    """Read the JSON of `PosePrior.save`.

    Raises:
        DataError: No such file, no JSON, or not what a prior needs.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text())
        lens = document.pop("lens")
        intrinsics = torch.tensor(lens["intrinsics"])
        distortion, sizes = lens["distortion"], lens.get("sizes")
        cameras = Cameras(
            torch.eye(4).repeat(len(intrinsics), 1, 1),
            intrinsics,
            lens["width"],
            lens["height"],
            None if distortion is None else torch.tensor(distortion),
            lens=lens.get("model", "perspective"),
            sizes=None if sizes is None else torch.tensor(sizes),
        )
        kind = document.pop("kind")
        if kind == NearPrior.kind:
            poses = torch.tensor(document.pop("poses"))
            one = cameras if len(cameras) == len(poses) else cameras[[0] * len(poses)]
            return NearPrior(replace(one, poses=poses), **document)
        if kind not in _KINDS:
            raise ConfigError(f"unknown kind {kind!r}; {nearest(kind, _KINDS)}")
        return _KINDS[kind](cameras, **{k: tuple(v) for k, v in document.items()})
    except Exception as error:  # torch and JSON raise a dozen kinds here
        raise DataError(
            f"load_prior: {path} must be a pose prior, got: {error}; `PosePrior.save` writes one"
        ) from error


_KINDS: dict[str, Any] = {cls.kind: cls for cls in (SpherePrior, BoxPrior)}


def turns(angles: Float[Tensor, "poses 3"]) -> Float[Tensor, "poses 3 3"]:
    """Rotations by rotation vectors: the axis times the angle in radians."""
    axes = torch.eye(3).expand(len(angles), 3, 3)
    return torch.linalg.matrix_exp(torch.linalg.cross(axes, angles[:, None], dim=2))


def about(center: Float[Tensor, " 3"], rotation: Float[Tensor, "poses 3 3"]) -> Tensor:
    """Turn the world about a point: [P 4 4]."""
    moves = torch.eye(4).repeat(len(rotation), 1, 1)
    moves[:, :3, :3] = rotation
    moves[:, :3, 3] = center - rotation @ center
    return moves


def _between(u: Tensor, ends: tuple[float, float]) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * u


def _towards(up: Tensor) -> Tensor:
    """A rotation that takes z to ``up``, [3 3]."""
    up = torch.nn.functional.normalize(up, dim=0)
    if float(up[2].abs()) > 0.999999:
        return torch.diag(torch.tensor([1.0, up[2].sign(), up[2].sign()]))
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 0, 1]), up), dim=0)
    return torch.stack([right, torch.linalg.cross(up, right), up], dim=1)


def _triple(values: Tensor) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z
