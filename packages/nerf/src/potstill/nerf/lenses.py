"""Lens models: directions of image coordinates, and where a lens folds the image over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

__all__ = ["COEFFICIENTS", "LENSES", "Lens", "directions", "undistort"]

Lens = Literal[
    "perspective", "fisheye", "equirectangular", "thin-prism", "fisheye624", "fov", "division",
    "eucm",
]  # fmt: skip
LENSES: tuple[Lens, ...] = get_args(Lens)
COEFFICIENTS: dict[Lens, tuple[int, ...]] = {
    "perspective": (4, 8),
    "fisheye": (4, 8),
    "equirectangular": (),
    "thin-prism": (8,),
    "fisheye624": (12,),
    "fov": (1,),
    "division": (1,),
    "eucm": (2,),
}
"""How many coefficients of distortion a lens has."""

_Solve = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
_Jacobian = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]  # f, g, df/dx, df/dy, dg/dx, dg/dy
_SHARES = tuple(k / 8 for k in range(1, 9))  # of the way to a solution that must not be folded


def directions(
    lens: Lens, u: Tensor, v: Tensor, distortion: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Directions [R 3] (x right, y down, z ahead), and which coordinates [R] the lens reaches.

    Where a distortion polynomial has turned back, no direction belongs to a coordinate: it gets
    that of the last one on the way to the centre which has one.

    Args:
        lens: ``perspective``: coordinates of the plane at distance 1; ``fisheye``, ``thin-prism``
            and ``fisheye624``: the length is the angle to the axis, distorted; ``fov``,
            ``division`` and ``eucm``: the plane, distorted in closed form; ``equirectangular``:
            longitude and latitude.
        u: Coordinates to the right, in focal lengths, [R].
        v: Coordinates down, [R].
        distortion: k1 k2 p1 p2, or with k3 k4 k5 k6, of ``perspective``, k1 k2 k3 k4 of
            ``fisheye``, k1 k2 p1 p2 k3 k4 sx1 sy1 of ``thin-prism``, k0 to k5 p0 p1 s0 to s3 of
            ``fisheye624``, omega of ``fov``, k of ``division``, alpha beta of ``eucm``; [R of
            these].

    Source: OpenCV, "Camera Calibration" and "Fisheye camera model"; COLMAP, "Camera Models", for
    FOV, (SIMPLE_)DIVISION, EUCM, THIN_PRISM_FISHEYE and RAD_TAN_THIN_PRISM_FISHEYE.
    """
    reached = torch.ones_like(u, dtype=torch.bool)
    if lens == "equirectangular":
        return torch.stack([u.sin() * v.cos(), v.sin(), u.cos() * v.cos()], dim=1), reached
    if distortion is not None and lens in _CLOSED:
        return _CLOSED[lens](u, v, distortion)
    if distortion is not None:
        u, v, reached = _unfolded(_SOLVERS[lens], u, v, distortion)
    if lens == "perspective" or lens in _CLOSED:
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
    """OpenCV's model, rational where there are eight coefficients."""
    k1, k2, p1, p2, *more = lens.unbind(1)
    k3, k4, k5, k6 = more or (0.0,) * 4

    def at(x: Tensor, y: Tensor) -> _Jacobian:
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
        return fx, fy, xx, xy, xy, yy

    return _newton(at, u, v, 8)


def _newton(
    at: Callable[[Tensor, Tensor], _Jacobian], u: Tensor, v: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where a map gives (u, v), and whether it is unfolded all the way there."""
    x, y = u, v
    for _ in range(steps):
        fx, fy, xx, xy, yx, yy = at(x, y)
        fx, fy, determinant = fx - u, fy - v, xx * yy - xy * yx
        x, y = x - (yy * fx - xy * fy) / determinant, y - (xx * fy - yx * fx) / determinant
    fx, fy, *_ = at(x, y)
    good = (fx - u).abs() + (fy - v).abs() < 1e-4 * (1 + u.abs() + v.abs())
    for share in _SHARES:
        _, _, xx, xy, yx, yy = at(x * share, y * share)
        good &= xx * yy - xy * yx > 0
    return x, y, good


def _by_derivatives(distort: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> _Solve:
    """Newton's method on a map of coordinates, with the derivatives that torch finds."""

    def solve(u: Tensor, v: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def at(x: Tensor, y: Tensor) -> _Jacobian:
            one, zero = torch.ones_like(x), torch.zeros_like(x)

            def mapped(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                return distort(x, y, lens)

            push: Any = torch.func.jvp  # its type has a third result
            (fx, fy), (xx, yx) = push(mapped, (x, y), (one, zero))
            _, (xy, yy) = push(mapped, (x, y), (zero, one))
            return fx, fy, xx, xy, yx, yy

        return _newton(at, u, v, 10)

    return solve


def _thin_prism(x: Tensor, y: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    k1, k2, p1, p2, k3, k4, sx, sy = lens.unbind(1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + sx * r2,
        y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y) + sy * r2,
    )


def _fisheye624(x: Tensor, y: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    *k, p0, p1, s0, s1, s2, s3 = lens.unbind(1)
    angle2, radial = x * x + y * y, torch.zeros_like(x)
    for factor in reversed(k):
        radial = angle2 * (factor + radial)
    x, y = x * (1 + radial), y * (1 + radial)
    r2 = x * x + y * y
    return (
        x + 2 * p1 * x * y + p0 * (r2 + 2 * x * x) + r2 * (s0 + r2 * s1),
        y + 2 * p0 * x * y + p1 * (r2 + 2 * y * y) + r2 * (s2 + r2 * s3),
    )


def _fov(u: Tensor, v: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """The length is an angle in units of omega."""
    omega = lens[:, 0]
    angle = torch.hypot(u, v) * omega
    reached = angle.abs() < math.pi / 2
    angle = angle.clamp(-1.5707, 1.5707)
    # tan(angle) / angle and 2 tan(omega / 2) / omega, which have limits at 0
    ratio = torch.sinc(angle / math.pi) / angle.cos()
    half = torch.sinc(omega / 2 / math.pi) / (omega / 2).cos()
    return _to_plane(u, v, half / ratio), reached


def _division(u: Tensor, v: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    bent = lens[:, 0] * (u * u + v * v)
    return _to_plane(u, v, (1 + bent).clamp(min=1e-6)), bent.abs() < 1


def _eucm(u: Tensor, v: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    alpha, beta = lens[:, 0], lens[:, 1]
    r2 = beta * (u * u + v * v)
    root = 1 - (2 * alpha - 1) * r2
    below = (alpha * root.clamp(min=0).sqrt() + 1 - alpha).clamp(min=1e-12)
    ahead = (1 - alpha * alpha * r2) / below
    return _to_plane(u, v, ahead.clamp(min=1e-6)), (root >= 0) & (ahead > 1e-6)


def _to_plane(u: Tensor, v: Tensor, ahead: Tensor) -> Tensor:
    return torch.stack([u, v, ahead], dim=1)


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


_SOLVERS: dict[Lens, _Solve] = {
    "perspective": _plane,
    "fisheye": _angles,
    "thin-prism": _by_derivatives(_thin_prism),
    "fisheye624": _by_derivatives(_fisheye624),
}
_CLOSED: dict[Lens, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "fov": _fov,
    "division": _division,
    "eucm": _eucm,
}
