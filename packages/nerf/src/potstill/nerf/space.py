"""Space: how rays enter a scene, and how its points map to the unit cube that fields know."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError

__all__ = ["Rays", "Space"]

Kind = Literal["box", "contracted", "ndc"]


@dataclass(frozen=True)
class Rays:
    """Rays in marching coordinates.

    Attributes:
        origins: [R 3].
        directions: [R 3]; a sample is at ``origin + t * direction``.
        views: Unit directions in the world, which colour depends on, [R 3].
        base: Start of the marching, [R].
        far: End of the marching, [R]; not above ``base`` for rays that miss.
    """

    origins: Tensor
    directions: Tensor
    views: Tensor
    base: Tensor
    far: Tensor

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: slice | Tensor) -> Rays:
        """Some rays."""
        return Rays(*(getattr(self, item.name)[index] for item in fields(self)))


@dataclass(frozen=True)
class Space:
    """The region that a field describes.

    ``box``: the points of an axis-aligned box. ``contracted``: all points; the box is mapped to
    [-1, 1]^3 and what lies outside the unit ball to the shell of radius 2, by
    ``(2 - 1/|x|) x/|x|`` (Barron et al., "Mip-NeRF 360", CVPR 2022, Eq. 10). ``ndc``: the
    view frustum of a camera at the origin (Mildenhall et al., "NeRF", ECCV 2020, Appendix C).

    Args:
        kind: One of these.
        low: Low corner of the box; of normalised device coordinates with ``ndc``.
        high: High corner.
        near: Distance at which rays start.
        far: Distance at which contracted rays end.
        steps: Intervals along the diagonal of the box, or from near to far.
        lens: 2 fx / width and 2 fy / height of the camera that defines ``ndc``.

    Raises:
        ConfigError: An empty box, or near not below far.

    Example:
        >>> space = Space("box", (-1, -1, -1), (1, 1, 1))
        >>> space.unit(torch.zeros(1, 3))
        tensor([[0.5000, 0.5000, 0.5000]])
    """

    kind: Kind = "box"
    low: tuple[float, float, float] = (-1.5, -1.5, -1.5)
    high: tuple[float, float, float] = (1.5, 1.5, 1.5)
    near: float = 0.05
    far: float = 1000.0
    steps: int = 256
    lens: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.kind not in ("box", "contracted", "ndc"):
            raise ConfigError(f"Space: kind must be box, contracted or ndc, got {self.kind!r}")
        if not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"Space: low must be below high, got {self.low} and {self.high}")
        if not 0 <= self.near < self.far:
            raise ConfigError(f"Space: near must be below far, got {self.near} and {self.far}")
        if self.kind != "box" and self.near <= 0:
            raise ConfigError(f"Space: near must be positive with {self.kind}, got {self.near}")
        if self.steps < 1:
            raise ConfigError(f"Space: steps must be at least 1, got {self.steps}")

    def affine(self, like: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Low corner, one over the size, and whether a contraction follows."""
        low, inverse = _corner(self, like.device, like.dtype)
        return low, inverse, self.kind == "contracted"

    def unit(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Map points in marching coordinates to the unit cube."""
        low, inverse, contracted = self.affine(points)
        u = (points - low) * inverse
        if not contracted:
            return u
        u = 2 * u - 1
        norm = u.norm(dim=-1, keepdim=True).clamp(min=1)
        return u * ((2 - 1 / norm) / norm) * 0.25 + 0.5

    def points(self, unit: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """The inverse of `unit`; the outer shell of a contracted cube is cut at 100 radii."""
        low, inverse, contracted = self.affine(unit)
        if contracted:
            x = (unit - 0.5) * 4
            norm = x.norm(dim=-1, keepdim=True)
            outside = 1 / (2 - norm.clamp(1, 1.99)) / norm.clamp(min=1)
            unit = (x * torch.where(norm > 1, outside, torch.ones_like(norm)) + 1) / 2
        return low + unit / inverse

    def world(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Map marching coordinates back to the world; the identity except with ``ndc``."""
        if self.kind != "ndc":
            return points
        x, y, z = points.unbind(-1)
        depth = 2 * self.near / (z.clamp(max=0.999) - 1)  # negative: in front of the camera
        return torch.stack([-x * depth / self.lens[0], -y * depth / self.lens[1], depth], dim=-1)

    def edges(self) -> Float[Tensor, " steps+1"]:
        """Where the intervals of a ray lie, from its base: even, or growing when contracted."""
        share = torch.arange(self.steps + 1, dtype=torch.float32) / self.steps
        if self.kind == "contracted":
            return self.near * (self.far / self.near) ** share
        return share * math.dist(self.low, self.high)

    def share(self, t: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
        """Position along a ray in units that `edges` divides evenly: from 0 to 1 all the way."""
        if self.kind == "contracted":
            return (t.clamp(min=self.near) / self.near).log() / math.log(self.far / self.near)
        return t / math.dist(self.low, self.high)

    def trace(self, origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"]) -> Rays:
        """Rays of the world as rays in marching coordinates, with where they start and end."""
        views = directions
        if self.kind == "contracted":
            zero = torch.zeros_like(origins[:, 0])
            return Rays(origins, directions, views, zero, zero + self.far)
        near = self.near
        if self.kind == "ndc":
            origins, directions = self._device(origins, directions)
            near = 0.0
        low, inverse, _ = self.affine(origins)
        safe = torch.where(directions == 0, torch.full_like(directions, 1e-12), directions)
        first = (low - origins) / safe
        second = (low + 1 / inverse - origins) / safe
        base = torch.minimum(first, second).amax(1).clamp(min=near)
        far = torch.maximum(first, second).amin(1)
        return Rays(origins, directions, views, base, far)

    def _device(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised device coordinates, starting on the near plane, unit directions."""
        t = -(self.near + origins[:, 2]) / directions[:, 2]
        x, y, z = (origins + t[:, None] * directions).unbind(1)
        dx, dy, dz = directions.unbind(1)
        a, b = self.lens
        start = torch.stack([-a * x / z, -b * y / z, 1 + 2 * self.near / z], dim=1)
        towards = torch.stack(
            [-a * (dx / dz - x / z), -b * (dy / dz - y / z), -2 * self.near / z], dim=1
        )
        return start, torch.nn.functional.normalize(towards, dim=1)


@lru_cache(64)
def _corner(space: Space, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Low corner and one over the size, copied to a device once."""
    with torch.inference_mode(False):
        low, high = (torch.tensor(c, device=device, dtype=dtype) for c in (space.low, space.high))
        return low, 1 / (high - low)
