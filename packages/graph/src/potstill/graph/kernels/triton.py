"""The Triton kernel: one program for a tile of edges, the gradient added atomically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from potstill.graph.kernels.contrast import Contrast

__all__ = ["edge_contrast", "launches"]

_TILE, _ELEMENTS = 64, 1024
"""Most edges a program, and most logits: more would not fit into the registers."""


def edge_contrast(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """The fused form of the reference in `potstill.graph.kernels.contrast`, in float32."""
    z = z.detach().contiguous()
    gradient = torch.zeros_like(z)
    edges, classes = made.i.numel(), z.shape[1]
    width = triton.next_power_of_2(classes)
    tile = min(_TILE, _ELEMENTS // width)
    tiles = triton.cdiv(edges, tile)
    values = z.new_empty(tiles)
    q_t = made.z_t if made.q_t is None else made.q_t
    with torch.cuda.device_of(z):
        _contrast_kernel[(tiles,)](
            z,
            made.z_t.float().contiguous(),
            q_t.float().contiguous(),
            made.i,
            made.j.contiguous(),
            made.factor.float().contiguous(),
            gradient,
            values,
            edges,
            classes,
            1 / made.tau,
            KEPT=made.q_t is not None,
            DIFFERENTIATE=differentiate,
            TILE=tile,
            WIDTH=width,
        )
    return values.sum(dtype=torch.float64), gradient if differentiate else None


def launches() -> Iterator[Callable[[], object]]:
    """Calls that launch the kernel in each of its forms; `tools/compile_kernels.py` makes them."""
    i = torch.arange(4)
    for classes in (1, 2, 3, 7, 16, 17, 32, 40, 64, 100, 128):
        kept = Contrast.make(torch.randn(5, classes), i, i + 1, torch.ones(4), 2.0, 4)
        for made in (kept, kept._replace(q_t=None)):
            for differentiate in (True, False):
                yield partial(edge_contrast, made.z_t, made, differentiate)


@triton.jit
def _spread(a, b, inverse_tau, inside):  # type: ignore[no-untyped-def]
    """``|a - b| / tau``, far below everything in the padding."""
    return tl.where(inside, tl.abs(a - b) * inverse_tau, -1e30)


@triton.jit
def _contrast_kernel(  # type: ignore[no-untyped-def]
    z,
    z_t,
    q_t,
    i,
    j,
    factor,
    gradient,
    values,
    edges,
    classes,
    inverse_tau,
    KEPT: tl.constexpr,
    DIFFERENTIATE: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    e = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    c = tl.arange(0, WIDTH)
    there = e < edges
    inside = there[:, None] & (c < classes)[None, :]
    row_i = tl.load(i + e, mask=there, other=0).to(tl.int64)[:, None] * classes + c[None, :]
    row_j = tl.load(j + e, mask=there, other=0).to(tl.int64)[:, None] * classes + c[None, :]
    a = tl.load(factor + e, mask=there, other=0.0)[:, None]

    z_i = tl.load(z + row_i, mask=inside, other=0.0)
    z_j = tl.load(z + row_j, mask=inside, other=0.0)
    x = _spread(z_i, z_j, inverse_tau, inside)
    x -= tl.max(x, 1)[:, None]
    power = tl.where(inside, tl.exp(x), 0.0)
    total = tl.maximum(tl.sum(power, 1), 1e-30)[:, None]

    if KEPT:
        q = tl.load(q_t + e[:, None] * classes + c[None, :], mask=inside, other=0.0)
    else:
        t_i = tl.load(z_t + row_i, mask=inside, other=0.0)
        t_j = tl.load(z_t + row_j, mask=inside, other=0.0)
        y = _spread(t_i, t_j, inverse_tau, inside)
        y -= tl.max(y, 1)[:, None]
        q = tl.where(inside, tl.exp(y), 0.0)
        q /= tl.maximum(tl.sum(q, 1), 1e-30)[:, None]

    log_q = tl.where(inside, x - tl.log(total), 0.0)
    tl.store(values + tl.program_id(0), -tl.sum(a * q * log_q))
    if DIFFERENTIATE:
        difference = z_i - z_j
        sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
        slope = a * inverse_tau * (power / total - q) * sign
        tl.atomic_add(gradient + row_i, slope, mask=inside, sem="relaxed")
        tl.atomic_add(gradient + row_j, -slope, mask=inside, sem="relaxed")
