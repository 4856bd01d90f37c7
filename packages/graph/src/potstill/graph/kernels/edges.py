"""The divergence of differences along edges, as an autograd function over its backends.

The torch form is the reference; the others fuse gather, difference, softmax and scatter, so that an
edge never touches memory outside the caches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.core.backends import Backend, Backends
from potstill.graph.kernels import contrast as reference
from potstill.graph.kernels import native
from potstill.graph.kernels.contrast import Contrast

__all__ = ["CONTRASTS", "contrast"]

_Form = Callable[[Tensor, Contrast, bool], tuple[Tensor, Tensor | None]]
_MOST_CLASSES = 128


def _triton(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    from potstill.graph.kernels.triton import edge_contrast  # needs the package

    return edge_contrast(z, made, differentiate)


CONTRASTS: Backends[_Form] = Backends(
    "HighFrequency",
    Backend("triton", "one Triton kernel; atomic adds", _triton, ("cuda",), ("triton",)),
    Backend(
        "native",
        "C++ compiled on first use; deterministic",
        native.edge_contrast,
        ("cpu",),
        check=partial(native.kernel, "edges"),
    ),
    Backend("torch", "plain torch, the reference", reference.edge_contrast),
)
"""Backends of `contrast`: its value and gradient for logits in float32."""


class _Contrast(torch.autograd.Function):
    """The divergence of the student's differences; the gradient is made with the value."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, made: Contrast, form: _Form) -> Tensor:
        value, gradient = form(z, made, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return (value + made.constant).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None


def contrast(z_s: Tensor, made: Contrast, backend: str) -> Tensor:
    """The divergence of the student's differences from the teacher's; see `Contrast`.

    Args:
        z_s: The student's logits [N C].
        made: Edges and teacher.
        backend: Name of a backend, or ``"auto"``. Double precision, and more classes than a kernel
            takes, are computed by torch.

    Returns:
        Scalar in float32 (float64 for float64 logits).

    Raises:
        BackendError: The backend does not run on the device of the logits.
    """
    kind = torch.float64 if z_s.dtype == torch.float64 else torch.float32
    z = z_s.to(kind)
    if made.i.numel() == 0:
        return z.sum() * 0.0
    if kind == torch.float64 or z.shape[1] > _MOST_CLASSES:
        backend = "torch"
    value: Tensor = _Contrast.apply(z, made, CONTRASTS.resolve(backend, z.device).run)
    return value
