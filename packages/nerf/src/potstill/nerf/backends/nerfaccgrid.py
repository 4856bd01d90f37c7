"""The ``nerfacc`` backend: marching through an occupancy grid on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.core import BackendError

__all__ = ["march"]


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
    """As in the reference for uniform steps in a box.

    nerfacc tests the cells that an interval starts in and the reference those of its sample point,
    so samples at the border of the occupied space may differ.

    Raises:
        BackendError: Contracted space or growing steps, which nerfacc's grid does not know.
    """
    import nerfacc

    low, inverse, contracted = unit
    steps = edges[1:] - edges[:-1]
    if contracted or bool((steps - steps[0]).abs().max() > 1e-4 * steps[0]):
        raise BackendError(
            "march: nerfacc marches in uniform steps through a box, got a contracted space; choose "
            "backend='auto' or 'torch' for it"
        )
    first = base + edges[0]
    intervals, samples, _ = nerfacc.traverse_grids(
        *(origins, directions, occupied[None], torch.cat([low, low + 1 / inverse])[None]),
        near_planes=first,
        far_planes=far,
        step_size=float(steps[0]),
        cone_angle=0.0,
    )
    start = intervals.vals[intervals.is_left]
    end = intervals.vals[intervals.is_right]
    ray = samples.ray_indices
    counts = torch.bincount(ray, minlength=len(origins))
    return start + jitter[ray] * (end - start), end - start, ray, counts
