"""Colour for pixels that are not seen, from the nearest that are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["filled"]


def filled(color: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Colour where ``seen``, and elsewhere means of what is seen nearby, coarser further away.

    A network that looks across the edge of what is seen then finds no edge of colour there.
    Source: Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4 (pull-push).

    Args:
        color: ``[H W 3]``.
        seen: ``[H W]``.
    """
    if seen.all() or not seen.any():
        return color
    h, w = seen.shape
    weight = seen.astype(np.float32)
    total, count = _halved(color * weight[..., None]), _halved(weight[..., None])
    coarse = filled(total / np.maximum(count, 1), count[..., 0] > 0)
    far = coarse.repeat(2, axis=0).repeat(2, axis=1)[:h, :w]
    return np.where(seen[..., None], color, far)


def _halved(values: NDArray[Any]) -> NDArray[Any]:
    """Sums over squares of 2x2."""
    h, w, count = values.shape
    padded = np.pad(values, ((0, h % 2), (0, w % 2), (0, 0)))
    parts = padded.reshape((h + 1) // 2, 2, (w + 1) // 2, 2, count)
    halves: NDArray[Any] = parts.sum(axis=(1, 3))
    return halves
