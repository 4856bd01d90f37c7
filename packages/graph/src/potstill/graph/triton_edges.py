"""The Triton kernel: one program for a tile of edges, the gradient added atomically."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from potstill.core import BackendError
from potstill.graph.edges import Contrast

__all__ = ["edge_contrast", "require"]

_TILE = 64


def require() -> None:
    """Check that the kernel can run.

    Raises:
        BackendError: Triton or a CUDA device is missing.
    """
    if importlib.util.find_spec("triton") is None:
        raise BackendError("triton: the package triton must be installed: pip install triton")
    if not torch.cuda.is_available():
        raise BackendError("triton: a CUDA device must be there; on the CPU use backend='native'")


def edge_contrast(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """The fused form of the torch reference in `potstill.graph.edges`, for float32 on CUDA."""
    import triton

    from potstill.graph.triton_kernel import contrast_kernel

    z = z.detach().contiguous()
    gradient = torch.zeros_like(z)
    edges, classes = made.i.numel(), z.shape[1]
    tiles = triton.cdiv(edges, _TILE)
    values = z.new_empty(tiles)
    q_t = made.z_t if made.q_t is None else made.q_t
    contrast_kernel[(tiles,)](
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
        TILE=_TILE,
        WIDTH=triton.next_power_of_2(classes),
    )
    return values.sum(), gradient if differentiate else None
