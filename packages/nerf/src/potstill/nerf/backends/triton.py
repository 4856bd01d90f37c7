"""The ``triton`` backend: one program for each level and block of points.

Needs no CUDA compiler. The gradient of the table is summed with atomics: of floating numbers, so
that its last bits depend on the order of the programs, or of 64-bit integers, which have no order.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from potstill.nerf.backends.levels import Levels

__all__ = ["encode", "encode_fixed", "launches"]

_BLOCK = 128


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """As in the reference, in float32."""
    y: Tensor = _Encode.apply(x, table, levels, False)
    return y


def encode_fixed(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """As `encode`; the gradient of the table has the same bits whatever the order of its sums."""
    y: Tensor = _Encode.apply(x, table, levels, True)
    return y


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, levels: Levels, fixed: bool) -> Tensor:
        x, table = x.detach().float().contiguous(), table.detach().float().contiguous()
        y = torch.empty(len(x), levels.width, device=x.device)
        _launch(_forward, levels, x, table, y)
        ctx.save_for_backward(x, table)
        ctx.levels, ctx.fixed = levels, fixed
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, table = ctx.saved_tensors
        dy = dy.float().contiguous()
        dx = dtable = None
        if ctx.needs_input_grad[1]:
            units = _units(dy) if ctx.fixed else dy.new_ones(())
            sums = torch.zeros_like(table, dtype=torch.int64 if ctx.fixed else torch.float32)
            _launch(_backward_table, ctx.levels, x, dy, sums, units)
            dtable = (sums.double() / units).float() if ctx.fixed else sums
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x)
            _launch(_backward_input, ctx.levels, x, table, dy, dx)
        return dx, dtable, None, None


def _units(dy: Tensor) -> Tensor:
    """Integers in 1, a power of two so large that no sum of this gradient can overflow."""
    if not dy.numel():
        return dy.new_ones((), dtype=torch.float64)
    largest = dy.abs().amax().double().clamp(min=2.0**-126)
    # a row gets at most a weight of 1 of each point at each of 8 corners; a bit for rounding
    return torch.exp2((61 - torch.log2(largest * 8 * max(len(dy), 1))).floor().clamp(-900, 900))


def _launch(kernel: Any, levels: Levels, x: Tensor, *tensors: Tensor) -> None:
    if not len(x):
        return
    scale, integers = _level_tensors(levels, x.device)
    grid = (-(-len(x) // _BLOCK), len(levels.scale))
    with torch.cuda.device_of(x):
        kernel[grid](
            *(x, *tensors, scale, integers, len(x), len(levels.scale)),
            F=levels.features,
            BLOCK=_BLOCK,
        )


def launches() -> Iterator[Callable[[], object]]:
    """Calls that launch each kernel in each of its forms; `tools/compile_kernels.py` makes them."""
    for count, points, features in product((1, 3, 16), (5, 16), (1, 2, 4, 8)):
        yield partial(_both_ways, Levels.geometric(count, features, 10, 4, 4 * count), points)


def _both_ways(levels: Levels, points: int) -> None:
    x = torch.zeros(points, 3, requires_grad=True)
    table = torch.zeros(levels.total, levels.features, requires_grad=True)
    for each in (encode_fixed, encode):
        each(x, table, levels).sum().backward()


@cache
def _level_tensors(levels: Levels, device: torch.device) -> tuple[Tensor, Tensor]:
    columns = (levels.resolution, levels.rows, levels.hashed, levels.offset)
    rows = [[int(value) for value in row] for row in zip(*columns, strict=True)]
    return torch.tensor(levels.scale, device=device), torch.tensor(rows, device=device)


@triton.jit
def _axis(x, points, scale, mask, axis: tl.constexpr):
    """Cell and fraction along one axis; ``fma`` rounds once."""
    value = tl.load(x + points * 3 + axis, mask=mask, other=0.0)
    p = tl.fma(value, scale, tl.full(value.shape, 0.5, tl.float32))
    low = tl.floor(p)
    return low.to(tl.int32).to(tl.uint32), p - low


@triton.jit
def _row(gx, gy, gz, resolution, rows, hashed):
    """Row of a vertex within its level; unsigned 32-bit arithmetic."""
    dense = (gx + gy * resolution + gz * resolution * resolution) % rows
    spread = (gx ^ (gy * 2654435761) ^ (gz * 805459861)) & (rows - 1)
    return tl.where(hashed, spread, dense).to(tl.int64)


@triton.jit
def _block(x, scales, integers, count, BLOCK: tl.constexpr):
    """The points of this program, which exist, their cells and fractions, and the level."""
    level = tl.program_id(1).to(tl.int64)
    points = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = points < count
    scale = tl.load(scales + level)
    gx, fx = _axis(x, points, scale, mask, 0)
    gy, fy = _axis(x, points, scale, mask, 1)
    gz, fz = _axis(x, points, scale, mask, 2)
    resolution = tl.load(integers + level * 4).to(tl.uint32)
    rows = tl.load(integers + level * 4 + 1).to(tl.uint32)
    hashed = tl.load(integers + level * 4 + 2) != 0
    offset = tl.load(integers + level * 4 + 3)
    return level, points, mask, scale, gx, gy, gz, fx, fy, fz, resolution, rows, hashed, offset


@triton.jit
def _near(f, d: tl.constexpr):
    """Weight of the lower or the upper corner along one axis."""
    return f if d else 1 - f


@triton.jit
def _forward(
    x, table, y, scales, integers, count, levels, F: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Features of a block of points at one level."""
    level, points, mask, _, gx, gy, gz, fx, fy, fz, resolution, rows, hashed, offset = _block(
        x, scales, integers, count, BLOCK
    )
    f = tl.arange(0, F)[None, :]
    total = tl.zeros([BLOCK, F], dtype=tl.float32)
    for dz in tl.static_range(2):
        for dy in tl.static_range(2):
            for dx in tl.static_range(2):
                row = _row(gx + dx, gy + dy, gz + dz, resolution, rows, hashed) + offset
                weight = _near(fx, dx) * _near(fy, dy) * _near(fz, dz)
                read = tl.load(table + row[:, None] * F + f, mask=mask[:, None], other=0.0)
                total += weight[:, None] * read
    tl.store(y + points[:, None] * levels * F + level * F + f, total, mask=mask[:, None])


@triton.jit
def _backward_table(
    x, gradient, out, units, scales, integers, count, levels,
    F: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scatter the gradient of a block of points to the rows of one level; to integers in units."""
    level, points, mask, _, gx, gy, gz, fx, fy, fz, resolution, rows, hashed, offset = _block(
        x, scales, integers, count, BLOCK
    )
    f = tl.arange(0, F)[None, :]
    at = points[:, None] * levels * F + level * F + f
    d = tl.load(gradient + at, mask=mask[:, None], other=0.0)
    for dz in tl.static_range(2):
        for dy in tl.static_range(2):
            for dx in tl.static_range(2):
                row = _row(gx + dx, gy + dy, gz + dz, resolution, rows, hashed) + offset
                weight = _near(fx, dx) * _near(fy, dy) * _near(fz, dz)
                value = weight[:, None] * d
                if out.dtype.element_ty == tl.int64:
                    value = (value.to(tl.float64) * tl.load(units)).to(tl.int64)
                tl.atomic_add(out + row[:, None] * F + f, value, mask[:, None], sem="relaxed")


@triton.jit
def _backward_input(
    x, table, gradient, out, scales, integers, count, levels,
    F: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the slope of one level to the gradient of the points."""
    level, points, mask, scale, gx, gy, gz, fx, fy, fz, resolution, rows, hashed, offset = _block(
        x, scales, integers, count, BLOCK
    )
    f = tl.arange(0, F)[None, :]
    at = points[:, None] * levels * F + level * F + f
    d = tl.load(gradient + at, mask=mask[:, None], other=0.0)
    sx = tl.zeros([BLOCK], dtype=tl.float32)
    sy = tl.zeros([BLOCK], dtype=tl.float32)
    sz = tl.zeros([BLOCK], dtype=tl.float32)
    for dz in tl.static_range(2):
        for dy in tl.static_range(2):
            for dx in tl.static_range(2):
                row = _row(gx + dx, gy + dy, gz + dz, resolution, rows, hashed) + offset
                read = tl.load(table + row[:, None] * F + f, mask=mask[:, None], other=0.0)
                value = tl.sum(d * read, 1)
                wx, wy, wz = _near(fx, dx), _near(fy, dy), _near(fz, dz)
                sx += (2.0 * dx - 1.0) * wy * wz * value
                sy += (2.0 * dy - 1.0) * wx * wz * value
                sz += (2.0 * dz - 1.0) * wx * wy * value
    tl.atomic_add(out + points * 3, scale * sx, mask=mask, sem="relaxed")
    tl.atomic_add(out + points * 3 + 1, scale * sy, mask=mask, sem="relaxed")
    tl.atomic_add(out + points * 3 + 2, scale * sz, mask=mask, sem="relaxed")
