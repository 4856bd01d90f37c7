"""Triton kernels of the hash grid; imported only by ``tritongrid`` when they are to run."""

# mypy: disable-error-code=untyped-decorator
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

__all__ = ["backward_input", "backward_table", "forward"]


@triton.jit
def _axis(x: Any, points: Any, scale: Any, mask: Any, axis: tl.constexpr) -> Any:
    """Cell and fraction along one axis; ``fma`` rounds once."""
    value = tl.load(x + points * 3 + axis, mask=mask, other=0.0)
    p = tl.fma(value, scale, tl.full(value.shape, 0.5, tl.float32))
    low = tl.floor(p)
    return low.to(tl.int32).to(tl.uint32), p - low


@triton.jit
def _row(gx: Any, gy: Any, gz: Any, resolution: Any, rows: Any, hashed: Any) -> Any:
    """Row of a vertex within its level; unsigned 32-bit arithmetic."""
    dense = (gx + gy * resolution + gz * resolution * resolution) % rows
    spread = (gx ^ (gy * 2654435761) ^ (gz * 805459861)) & (rows - 1)
    return tl.where(hashed, spread, dense).to(tl.int64)


@triton.jit
def forward(
    x: Any, table: Any, y: Any, scales: Any, integers: Any, count: Any, levels: Any,
    F: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Features of a block of points at one level."""
    level = tl.program_id(1)
    points = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    mask = points < count
    scale = tl.load(scales + level)
    resolution = tl.load(integers + level * 4).to(tl.uint32)
    rows = tl.load(integers + level * 4 + 1).to(tl.uint32)
    hashed = tl.load(integers + level * 4 + 2) != 0
    offset = tl.load(integers + level * 4 + 3)
    gx, fx = _axis(x, points, scale, mask, 0)
    gy, fy = _axis(x, points, scale, mask, 1)
    gz, fz = _axis(x, points, scale, mask, 2)
    for f in tl.static_range(F):
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for corner in tl.static_range(8):
            dx: tl.constexpr = corner % 2
            dy: tl.constexpr = corner // 2 % 2
            dz: tl.constexpr = corner // 4
            row = _row(gx + dx, gy + dy, gz + dz, resolution, rows, hashed) + offset
            wx = fx if dx else 1 - fx
            wy = fy if dy else 1 - fy
            wz = fz if dz else 1 - fz
            total += wx * wy * wz * tl.load(table + row * F + f, mask=mask, other=0.0)
        tl.store(y + points * (levels * F) + level * F + f, total, mask=mask)


@triton.jit
def backward_table(
    x: Any, gradient: Any, out: Any, scales: Any, integers: Any, count: Any, levels: Any,
    F: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Scatter the gradient of a block of points to the rows of one level."""
    level = tl.program_id(1)
    points = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    mask = points < count
    scale = tl.load(scales + level)
    resolution = tl.load(integers + level * 4).to(tl.uint32)
    rows = tl.load(integers + level * 4 + 1).to(tl.uint32)
    hashed = tl.load(integers + level * 4 + 2) != 0
    offset = tl.load(integers + level * 4 + 3)
    gx, fx = _axis(x, points, scale, mask, 0)
    gy, fy = _axis(x, points, scale, mask, 1)
    gz, fz = _axis(x, points, scale, mask, 2)
    for f in tl.static_range(F):
        d = tl.load(gradient + points * (levels * F) + level * F + f, mask=mask, other=0.0)
        for corner in tl.static_range(8):
            dx: tl.constexpr = corner % 2
            dy: tl.constexpr = corner // 2 % 2
            dz: tl.constexpr = corner // 4
            row = _row(gx + dx, gy + dy, gz + dz, resolution, rows, hashed) + offset
            wx = fx if dx else 1 - fx
            wy = fy if dy else 1 - fy
            wz = fz if dz else 1 - fz
            tl.atomic_add(out + row * F + f, wx * wy * wz * d, mask=mask)


@triton.jit
def backward_input(
    x: Any, table: Any, gradient: Any, out: Any, scales: Any, integers: Any, count: Any,
    levels: Any, F: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Add the slope of one level to the gradient of the points."""
    level = tl.program_id(1)
    points = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    mask = points < count
    scale = tl.load(scales + level)
    resolution = tl.load(integers + level * 4).to(tl.uint32)
    rows = tl.load(integers + level * 4 + 1).to(tl.uint32)
    hashed = tl.load(integers + level * 4 + 2) != 0
    offset = tl.load(integers + level * 4 + 3)
    gx, fx = _axis(x, points, scale, mask, 0)
    gy, fy = _axis(x, points, scale, mask, 1)
    gz, fz = _axis(x, points, scale, mask, 2)
    sx = tl.zeros([BLOCK], dtype=tl.float32)
    sy = tl.zeros([BLOCK], dtype=tl.float32)
    sz = tl.zeros([BLOCK], dtype=tl.float32)
    for corner in tl.static_range(8):
        dx: tl.constexpr = corner % 2
        dy: tl.constexpr = corner // 2 % 2
        dz: tl.constexpr = corner // 4
        row = _row(gx + dx, gy + dy, gz + dz, resolution, rows, hashed) + offset
        value = tl.zeros([BLOCK], dtype=tl.float32)
        for f in tl.static_range(F):
            d = tl.load(gradient + points * (levels * F) + level * F + f, mask=mask, other=0.0)
            value += d * tl.load(table + row * F + f, mask=mask, other=0.0)
        wx = fx if dx else 1 - fx
        wy = fy if dy else 1 - fy
        wz = fz if dz else 1 - fz
        sx += (1.0 if dx else -1.0) * wy * wz * value
        sy += (1.0 if dy else -1.0) * wx * wz * value
        sz += (1.0 if dz else -1.0) * wx * wy * value
    tl.atomic_add(out + points * 3, scale * sx, mask=mask)
    tl.atomic_add(out + points * 3 + 1, scale * sy, mask=mask)
    tl.atomic_add(out + points * 3 + 2, scale * sz, mask=mask)
