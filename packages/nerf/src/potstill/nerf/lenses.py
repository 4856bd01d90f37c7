"""Lens models: directions of image coordinates, and where a lens folds the image over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["LENSES", "Lens", "directions", "undistort"]

Lens = Literal["perspective", "fisheye", "equirectangular"]
LENSES = ("perspective", "fisheye", "equirectangular")

_Solve = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
_SHARES = tuple(k / 8 for k in range(1, 9))  # of the way to a solution that must not be folded


def directions(
    lens: Lens, u: Tensor, v: Tensor, distortion: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Directions [R 3] (x right, y down, z ahead), and which coordinates [R] the lens reaches.

    Where a distortion polynomial has turned back, no direction belongs to a coordinate: it gets
    that of the last one on the way to the centre which has one.

    Args:
        lens: ``perspective``: coordinates of the plane at distance 1; ``fisheye``: the length is
            the angle to the axis, distorted; ``equirectangular``: longitude and latitude.
        u: Coordinates to the right, in focal lengths, [R].
        v: Coordinates down, [R].
        distortion: [R 4] or [R 8]: k1 k2 p1 p2 k3 k4 k5 k6 of ``perspective``, k1 k2 k3 k4 of
            ``fisheye``.

    Source: OpenCV, "Camera Calibration" and "Fisheye camera model".
    """
    reached = torch.ones_like(u, dtype=torch.bool)
    if lens == "equirectangular":
        return torch.stack([u.sin() * v.cos(), v.sin(), u.cos() * v.cos()], dim=1), reached
    if distortion is not None:
        u, v, reached = _unfolded(_angles if lens == "fisheye" else _plane, u, v, distortion)
    if lens == "perspective":
        return torch.stack([u, v, torch.ones_like(u)], dim=1), reached
    angle = torch.hypot(u, v)
    side = torch.sinc(angle / torch.pi)  # sin(angle) / angle
    return torch.stack([u * side, v * side, angle.cos()], dim=1), reached & (angle <= torch.pi)


def undistort(u: Tensor, v: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor]:
    """Ideal coordinates of distorted ones in the plane at distance 1, y down."""
    return _plane(u, v, distortion)[:2]


def _unfolded(solve: _Solve, u: Tensor, v: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A solution for each coordinate: where there is none, that of the last which has one."""
    x, y, good = solve(u, v, lens)
    bad = (~good).nonzero()[:, 0]
    if len(bad):
        u, v, lens = u[bad], v[bad], lens[bad]
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(20):
            share = (low + high) / 2
            there = solve(u * share, v * share, lens)[2]
            low, high = torch.where(there, share, low), torch.where(there, high, share)
        x[bad], y[bad], _ = solve(u * low, v * low, lens)
    return x, y, good


def _plane(u: Tensor, v: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's method on OpenCV's model, rational where there are eight coefficients."""
    k1, k2, p1, p2, *more = lens.unbind(1)
    k3, k4, k5, k6 = more or (0.0,) * 4

    def at(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        r2 = x * x + y * y
        above, below = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
        radial = above / below
        slope = 2 * (k1 + r2 * (2 * k2 + 3 * r2 * k3))  # d radial / dx = slope * x
        slope = (slope - radial * 2 * (k4 + r2 * (2 * k5 + 3 * r2 * k6))) / below
        fx = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        fy = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
        xx = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x
        xy = slope * x * y + 2 * p1 * x + 2 * p2 * y
        yy = radial + slope * y * y + 2 * p2 * x + 6 * p1 * y
        return fx, fy, xx, xy, yy, xx * yy - xy * xy

    x, y = u, v
    for _ in range(8):
        fx, fy, xx, xy, yy, determinant = at(x, y)
        fx, fy = fx - u, fy - v
        x, y = x - (yy * fx - xy * fy) / determinant, y - (xx * fy - xy * fx) / determinant
    fx, fy, *_ = at(x, y)
    good = (fx - u).abs() + (fy - v).abs() < 1e-4 * (1 + u.abs() + v.abs())
    for share in _SHARES:
        good &= at(x * share, y * share)[5] > 0
    return x, y, good


def _angles(u: Tensor, v: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates whose length is the angle itself, by Newton's method on its polynomial."""
    k1, k2, k3, k4 = lens[:, :4].unbind(1)

    def at(a: Tensor) -> tuple[Tensor, Tensor]:
        s = a * a
        value = a * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
        return value, 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + 9 * s * k4)))

    length = torch.hypot(u, v)
    angle = length
    for _ in range(10):
        value, slope = at(angle)
        angle = angle - (value - length) / slope
    good = (at(angle)[0] - length).abs() < 1e-4 * (1 + length)
    for share in _SHARES:
        good &= at(angle * share)[1] > 0
    scale = torch.where(length > 0, angle / length.clamp(min=1e-12), torch.ones_like(length))
    return u * scale, v * scale, good
