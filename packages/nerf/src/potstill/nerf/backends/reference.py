"""The ``torch`` backend: the definition of every function in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.nerf.backends.levels import PRIMES, Levels

__all__ = ["corner_rows", "encode", "march", "placed"]


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Trilinear features of all levels, with gradients to ``x`` and ``table`` by autograd.

    Args:
        x: Points [B 3] in the unit cube, float32.
        table: Rows [R F], float32; or float64 for an oracle that accumulates exactly.
        levels: The level table.

    Returns:
        [B L*F] in the dtype of ``table``, level-major.
    """
    outputs = []
    for level in range(len(levels.scale)):
        scale = float(levels.scale[level])
        # Rounded once, as a fused multiply-add: this is what decides parity with tiny-cuda-nn.
        p = placed(x, scale) if x.device.type == "mps" else (x.double() * scale + 0.5).float()
        cell = p.detach().floor()
        f = (p - cell).to(table.dtype)  # [B 3]
        rows = corner_rows(cell.long(), levels, level)  # [B 8]
        near = torch.stack([1 - f, f], dim=-1)  # [B 3 2]
        weights = (
            near[:, 2, :, None, None] * near[:, 1, None, :, None] * near[:, 0, None, None, :]
        ).flatten(1)  # [B 8], x fastest
        outputs.append((weights[:, :, None] * table[rows]).sum(1))
    return torch.cat(outputs, dim=1)


def placed(x: Tensor, scale: float) -> Tensor:
    """``x * scale + 0.5`` rounded once, in float32 alone: MPS has no float64.

    Source: Dekker, 1971: products and sums with their rounding errors.
    """
    (a, b), (c, d) = _halves(x), _halves(x.new_tensor(scale))
    product = x * scale
    error = ((a * c - product) + a * d + b * c) + b * d
    total = product + 0.5
    half = total - product
    return total + ((product - (total - half)) + (0.5 - half) + error)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers of 12 bits whose sum is x."""
    large = x * 4097
    high = large - (large - x)
    return high, x - high


def corner_rows(cell: Tensor, levels: Levels, level: int) -> Tensor:
    """Rows of the 8 corners of cells [B 3] of one level, x fastest: [B 8]."""
    corner = torch.arange(8, device=cell.device)
    offsets = torch.stack([corner & 1, corner >> 1 & 1, corner >> 2], dim=1)
    g = (cell[:, None, :] + offsets) & 0xFFFFFFFF  # uint32 arithmetic in int64
    resolution, rows = levels.resolution[level], levels.rows[level]
    if levels.hashed[level]:
        a, b, c = (g[..., axis] * prime & 0xFFFFFFFF for axis, prime in enumerate(PRIMES))
        index = (a ^ b ^ c) & (rows - 1)
    else:
        index = g[..., 0] + g[..., 1] * resolution + g[..., 2] * resolution**2
        index = (index & 0xFFFFFFFF) % rows
    return index + levels.offset[level]


def march(
    origins: Tensor,
    directions: Tensor,
    base: Tensor,
    far: Tensor,
    jitter: Tensor,
    edges: Tensor,
    unit: tuple[Tensor, Tensor, bool],
    occupied: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample points of rays in the occupied cells of a grid.

    Interval k of ray r is ``[base_r + edges_k, base_r + edges_{k+1}]``; its sample point lies at
    the share ``jitter_r`` of it, and counts when the interval starts before ``far_r`` and the point
    is in an occupied cell.

    Args:
        origins: [R 3].
        directions: [R 3].
        base: Start of the intervals, [R].
        far: End of the rays, [R].
        jitter: Place in each interval, [R], in [0, 1].
        edges: Increasing, [S + 1].
        unit: Low corner, one over the size, and whether points are contracted (see `Space`).
        occupied: Booleans [N N N].

    Returns:
        Positions t [M], lengths dt [M], ray of each sample [M] (sorted), samples of each ray [R].
    """
    low, inverse, contracted = unit
    start = base[:, None] + edges[:-1]  # [R S]
    length = (edges[1:] - edges[:-1]).expand_as(start)
    t = start + jitter[:, None] * length
    points = origins[:, None] + t[..., None] * directions[:, None]
    u = (points - low) * inverse
    if contracted:
        u = 2 * u - 1
        norm = (u[..., 0] * u[..., 0] + u[..., 1] * u[..., 1] + u[..., 2] * u[..., 2]).sqrt()
        factor = torch.where(norm <= 1, torch.ones_like(norm), (2 - 1 / norm) / norm)
        u = u * factor[..., None] * 0.25 + 0.5
    inside = ((u >= 0) & (u <= 1)).all(-1)
    n = occupied.shape[0]
    cell = (u.clamp(0, 1) * n).long().clamp(max=n - 1)
    hit = occupied[cell[..., 0], cell[..., 1], cell[..., 2]]
    keep = hit & inside & (start < far[:, None])
    ray, step = keep.nonzero(as_tuple=True)
    return t[ray, step], length[ray, step], ray, keep.sum(1)
