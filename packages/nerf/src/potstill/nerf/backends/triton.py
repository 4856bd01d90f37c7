"""The ``triton`` backend: one program for each level and block of points.

Needs no CUDA compiler. The gradient of the table is summed with atomics, so its last bits depend
on the order of the programs.
"""

# mypy: disable-error-code=untyped-decorator
from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from potstill.nerf.backends.levels import Levels

__all__ = ["encode"]

_BLOCK = 128


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """As in the reference, in float32."""
    y: Tensor = _Encode.apply(x, table, levels)
    return y


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, levels: Levels) -> Tensor:
        x, table = x.detach().float().contiguous(), table.detach().float().contiguous()
        y = torch.empty(len(x), levels.width, device=x.device)
        _launch(_forward, levels, x, table, y)
        ctx.save_for_backward(x, table)
        ctx.levels = levels
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, table = ctx.saved_tensors
        dy = dy.float().contiguous()
        dx = dtable = None
        if ctx.needs_input_grad[1]:
            dtable = torch.zeros_like(table)
            _launch(_backward_table, ctx.levels, x, dy, dtable)
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x)
            _launch(_backward_input, ctx.levels, x, table, dy, dx)
        return dx, dtable, None


def _launch(kernel: Any, levels: Levels, x: Tensor, *tensors: Tensor) -> None:
    if not len(x):
        return
    scale, integers = _level_tensors(levels, x.device)
    grid = (-(-len(x) // _BLOCK), len(levels.scale))
    kernel[grid](
        *(x, *tensors, scale, integers, len(x), len(levels.scale)),
        F=levels.features,
        BLOCK=_BLOCK,
    )


@cache
def _level_tensors(levels: Levels, device: torch.device) -> tuple[Tensor, Tensor]:
    columns = (levels.resolution, levels.rows, levels.hashed, levels.offset)
    rows = [[int(value) for value in row] for row in zip(*columns, strict=True)]
    return torch.tensor(levels.scale, device=device), torch.tensor(rows, device=device)


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
def _forward(
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
def _backward_table(
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
def _backward_input(
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
