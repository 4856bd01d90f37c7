"""A scene that needs no files: soft coloured balls, rendered by quadrature."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.nerf.cameras import Cameras, looking
from potstill.nerf.scenes.scene import Scene, Split
from potstill.nerf.space import Space

__all__ = ["analytic", "balls"]

_CENTERS = ((-0.4, 0.0, 0.0), (0.45, 0.3, 0.1), (0.1, -0.5, -0.25))
_RADII = (0.5, 0.35, 0.3)
_COLORS = ((0.9, 0.3, 0.2), (0.2, 0.5, 0.9), (0.95, 0.8, 0.25))
_DENSITY, _EDGE = 40.0, 0.03


def balls(points: Float[Tensor, "points 3"]) -> tuple[Tensor, Tensor]:
    """Density [P] and colour [P 3] of three balls with soft edges and stripes.

    Source: our own; smooth, so that quadrature converges fast.
    """
    centers, colors = points.new_tensor(_CENTERS), points.new_tensor(_COLORS)
    distance = (points[:, None] - centers).norm(dim=-1) - points.new_tensor(_RADII)  # [P K]
    density = _DENSITY * torch.sigmoid(-distance / _EDGE)
    share = density / density.sum(1, keepdim=True).clamp(min=1e-6)
    stripes = 0.75 + 0.25 * torch.sin(14 * points[:, 2:] + 5 * points[:, :1])
    return density.sum(1), (share @ colors) * stripes


@cache
def analytic(size: int = 48, views: int = 24, tests: int = 4, steps: int = 128) -> Scene:
    """Views of `balls` from a spiral over the upper hemisphere, RGBA, without a random number.

    Args:
        size: Image width and height.
        views: Training views.
        tests: Test views, between the training views.
        steps: Intervals of the quadrature.

    Example:
        >>> scene = analytic(size=8, views=2, tests=1, steps=16)
        >>> scene.train.images.shape
        torch.Size([2, 8, 8, 4])
    """
    space = Space("box", (-1.0,) * 3, (1.0,) * 3, near=0.05, steps=128)
    train = _spiral(views, 0.0, size)
    test = _spiral(tests, 0.5, size)
    return Scene(
        "analytic",
        "analytic",
        Split(train, _images(train, space, steps)),
        Split(test, _images(test, space, steps)),
        space,
    )


def _spiral(count: int, shift: float, size: int) -> Cameras:
    golden = math.pi * (3 - math.sqrt(5))
    positions = []
    for k in range(count):
        height = 0.1 + 0.8 * (k + 0.5 + shift / 2) / (count + 0.5)
        angle = golden * (k + shift)
        flat = math.sqrt(1 - height**2)
        place = [flat * math.cos(angle), flat * math.sin(angle), height]
        positions.append(3.0 * torch.tensor(place))
    up = torch.tensor([0.0, 0.0, 1.0])
    return looking(positions, torch.zeros(3), up, 1.25 * size, size, size)


def _images(cameras: Cameras, space: Space, steps: int) -> Tensor:
    """The midpoint rule, one image after the other; colours only where there is something."""
    images = []
    for view in range(len(cameras)):
        rays = space.trace(*cameras.view(view))
        length = (rays.far - rays.base).clamp(min=0) / steps  # [R]
        t = rays.base[:, None] + (torch.arange(steps) + 0.5) * length[:, None]  # [R S]
        points = rays.origins[:, None] + t[..., None] * rays.directions[:, None]
        near = (points.norm(dim=-1) < 1.1) & (length > 0)[:, None]  # holds all of the balls
        density, color = torch.zeros(t.shape), torch.zeros(*t.shape, 3)
        density[near], color[near] = balls(points[near])
        tau = density * length[:, None]
        weights = torch.exp(-(tau.cumsum(1) - tau)) * -torch.expm1(-tau)
        alpha = weights.sum(1, keepdim=True)
        rgb = (weights[..., None] * color).sum(1) / alpha.clamp(min=1e-6)
        image = torch.cat([rgb, alpha], dim=1).reshape(cameras.height, cameras.width, 4)
        images.append((image.clamp(0, 1) * 255).round().byte())
    return torch.stack(images)
