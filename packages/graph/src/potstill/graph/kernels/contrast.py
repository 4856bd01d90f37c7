"""The divergence of differences along edges: what is known before the student, and the reference.

``L = sum_e a[e] KL(q_t[e] || softmax(|z[i] - z[j]| / tau))``, with the gradient made in the same
pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Contrast", "edge_contrast"]

_KEEP = 2**28  # bytes of teacher distributions that are kept; above, they are made again each step


class Contrast(NamedTuple):
    """Edges, and what the teacher says about them.

    Attributes:
        z_t: The teacher's logits [N C].
        i: One end of each edge [E], sorted.
        j: The other end [E].
        factor: The share of each edge in the loss [E].
        q_t: Distributions of the teacher's differences [E C]; None where there are too many.
        constant: ``sum_e a[e] sum_c q_t log q_t``, in double precision: near the teacher it is the
            value with another sign.
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
            constant += torch.dot((q * log_q).sum(1).double(), factor[part].double())
            if q_t is not None:
                q_t[part] = q
        return cls(z_t, i, j, factor, q_t, constant, tau, chunk)


def edge_contrast(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """The reference, a chunk of edges at a time."""
    value = z.new_zeros((), dtype=torch.float64)
    gradient = torch.zeros_like(z) if differentiate else None
    for part in _parts(made.i.numel(), made.chunk):
        i, j, factor = made.i[part], made.j[part], made.factor[part].to(z.dtype)
        difference = z.index_select(0, i) - z.index_select(0, j)
        log_q = torch.log_softmax(difference.abs() / made.tau, 1)
        q_t = _teacher(made, part).to(z.dtype)
        value -= torch.dot((q_t * log_q).sum(1).double(), factor.double())
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


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
