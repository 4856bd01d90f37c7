"""The ``nerfacc`` backend: marching through an occupancy grid on CUDA."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from potstill.core import BackendError

__all__ = ["CONTRACTED", "extension", "march"]

CONTRACTED = "contracted space"


def extension() -> None:
    """Look for nerfacc's extension, which nerfacc compiles when it is first asked for.

    Raises:
        BackendError: It was not built, or does not load.
    """
    try:
        module = import_module("nerfacc.cuda._backend")
        reason = "there is no nvcc to compile it" if module._C is None else ""
    except Exception as error:  # whatever its build raises
        reason = f"{type(error).__name__}: {error}"
    if reason:
        raise BackendError(
            f"nerfacc has no CUDA extension ({reason}); put nvcc of CUDA {torch.version.cuda}, as "
            "torch's, on PATH, or install a wheel of nerfacc that was built for this torch"
        )


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
    """As in the reference for uniform steps in a box; contracted space is refused before.

    nerfacc tests the cells that an interval starts in and the reference those of its sample point,
    so samples at the border of the occupied space may differ.
    """
    import nerfacc

    low, inverse, _ = unit
    steps = edges[1:] - edges[:-1]
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
