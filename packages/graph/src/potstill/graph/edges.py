"""The divergence of differences along edges, and the backends that compute it.

``L = sum_e a[e] KL(q_t[e] || softmax(|z[i] - z[j]| / tau))``, with the gradient made in the same
pass. The torch form is the reference; the others fuse gather, difference, softmax and scatter, so
that an edge never touches memory outside the caches.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.core import BackendError, ConfigError, PotstillError

__all__ = ["Backend", "Contrast", "available", "contrast", "resolve"]

Backend = Literal["auto", "torch", "native", "triton"]

_KEEP = 2**28  # bytes of teacher distributions that are kept; above, they are made again each step


class Contrast(NamedTuple):
    """Edges, and what the teacher says about them.

    Attributes:
        z_t: The teacher's logits [N C].
        i: One end of each edge [E], sorted.
        j: The other end [E].
        factor: The share of each edge in the loss [E].
        q_t: Distributions of the teacher's differences [E C]; None where there are too many.
        constant: ``sum_e a[e] sum_c q_t log q_t``.
        tau: Temperature.
        chunk: Edges at a time.
    """

    z_t: Tensor
    i: Tensor
    j: Tensor
    factor: Tensor
    q_t: Tensor | None
    constant: Tensor
    tau: float
    chunk: int

    @classmethod
    @torch.no_grad()
    def make(
        cls, z_t: Tensor, i: Tensor, j: Tensor, factor: Tensor, tau: float, chunk: int
    ) -> Contrast:
        """Sort the edges and compute what the student does not change."""
        order = torch.argsort(i, stable=True)
        i, j, factor = i[order], j[order], factor[order].contiguous()
        keep = i.numel() * z_t.shape[1] * z_t.element_size() <= _KEEP
        q_t = z_t.new_empty(i.numel(), z_t.shape[1]) if keep else None
        constant = z_t.new_zeros((), dtype=torch.float64)
        for part in _parts(i.numel(), chunk):
            log_q = torch.log_softmax((z_t[i[part]] - z_t[j[part]]).abs() / tau, 1)
            q = log_q.exp()
            constant += ((q * log_q).sum(1) * factor[part]).sum()
            if q_t is not None:
                q_t[part] = q
        return cls(z_t, i, j, factor, q_t, constant.to(z_t.dtype), tau, chunk)


class _Contrast(torch.autograd.Function):
    """Cross-entropy of the student's differences; the gradient is made with the value."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, made: Contrast, backend: str) -> Tensor:
        value, gradient = _FORMS[backend](z, made, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return value

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
        backend: What `resolve` gave. Double precision, and more classes than a kernel takes, are
            computed by torch.

    Returns:
        Scalar in float32 (float64 for float64 logits).
    """
    kind = torch.float64 if z_s.dtype == torch.float64 else torch.float32
    z = z_s.to(kind)
    if made.i.numel() == 0:
        return z.sum() * 0.0
    if kind == torch.float64 or z.shape[1] > _MOST_CLASSES or z.device.type != _HOMES[backend]:
        backend = "torch"
    value: Tensor = _Contrast.apply(z, made, backend)
    return value + made.constant.to(kind)


def resolve(backend: str) -> str:
    """The backend that ``backend`` means here.

    Raises:
        ConfigError: An unknown name.
        BackendError: It cannot run here; the message says what to install.
    """
    if backend == "auto":
        wanted = "triton" if torch.cuda.is_available() else "native"
        return wanted if not available(wanted) else "torch"
    if backend not in _FORMS:
        raise ConfigError(
            f"HighFrequency: backend must be auto, {', '.join(_FORMS)}, got {backend!r}"
        )
    why = available(backend)
    if why:
        raise BackendError(f"HighFrequency: backend {backend!r} must be able to run, but {why}")
    return backend


@functools.cache
def available(backend: str) -> str:
    """Why a backend cannot run here, with what to install; empty where it can."""
    try:
        if backend == "native":
            from potstill.graph.native import KERNELS, library

            for name in KERNELS:
                library(name)
        elif backend == "triton":
            from potstill.graph.triton_edges import require

            require()
    except PotstillError as error:
        return str(error)
    return ""


def _with_torch(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """The reference, a chunk of edges at a time."""
    value = z.new_zeros(())
    gradient = torch.zeros_like(z) if differentiate else None
    for part in _parts(made.i.numel(), made.chunk):
        i, j, factor = made.i[part], made.j[part], made.factor[part].to(z.dtype)
        difference = z.index_select(0, i) - z.index_select(0, j)
        log_q = torch.log_softmax(difference.abs() / made.tau, 1)
        q_t = _teacher(made, part).to(z.dtype)
        value -= torch.dot((q_t * log_q).sum(1), factor)
        if gradient is not None:
            slope = log_q.exp_().sub_(q_t).mul_(difference.sign_())
            slope.mul_((factor / made.tau)[:, None])
            gradient.index_add_(0, i, slope)
            gradient.index_add_(0, j, slope, alpha=-1)
    return value, gradient


def _teacher(made: Contrast, part: slice) -> Tensor:
    if made.q_t is not None:
        return made.q_t[part]
    difference = made.z_t[made.i[part]] - made.z_t[made.j[part]]
    return torch.softmax(difference.abs() / made.tau, 1)


def _with_native(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    from potstill.graph.native import edge_contrast

    return edge_contrast(z, made, differentiate)


def _with_triton(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    from potstill.graph.triton_edges import edge_contrast

    return edge_contrast(z, made, differentiate)


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]


_MOST_CLASSES = 128
_FORMS = {"torch": _with_torch, "native": _with_native, "triton": _with_triton}
_HOMES = {"torch": "", "native": "cpu", "triton": "cuda"}
