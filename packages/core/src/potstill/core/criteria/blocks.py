"""Value and gradient in one visit: what every criterion with a hand-written sweep goes through.

A sweep walks its inputs in blocks that stay in the cache, and returns the value together with its
gradients. Extra memory is the gradients plus a few blocks. Once the gradients have been handed
out they belong to autograd; a second backward through the same graph sweeps again.

A gradient of half precision is kept relative to the largest entry of its row, with the factor in
float32 beside it: divided by the number of rows it would vanish, loss scale or not, since that
comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import BackendError

__all__ = ["BLOCK", "Gradient", "Sweep", "blocks", "compute_dtype", "together"]

BLOCK = {"cpu": 1 << 17, "cuda": 1 << 23}
"""Elements of a block, on a CPU for each of up to four threads: four tensors of half a MiB live in
an L2 cache, and a softmax needs a row for each thread. A GPU wants fewer, longer visits."""


class Gradient:
    """The gradient with respect to one input, written block by block.

    Args:
        like: The input, [N C].
    """

    def __init__(self, like: Tensor) -> None:
        self.rows = torch.empty_like(like, memory_format=torch.contiguous_format)
        half = compute_dtype(like.dtype) != like.dtype
        self.size = like.new_empty(len(like), 1, dtype=torch.float32) if half else None

    def write(self, block: slice, part: Tensor, factor: float | Tensor = 1.0) -> None:
        """Put ``part * factor`` [n C] into the rows ``block``; the factor is a number or [n 1]."""
        if self.size is None:
            torch.mul(part, factor, out=self.rows[block])
            return
        size = torch.linalg.vector_norm(part, torch.inf, 1, keepdim=True, dtype=torch.float32)
        # The largest becomes 2^15, near the end of fp16, so that small ones have its whole range.
        size.mul_(2.0**-15).clamp_min_(torch.finfo(torch.float32).tiny)
        torch.div(part, size, out=self.rows[block])
        torch.mul(size, factor, out=self.size[block])

    def scaled(self, upstream: Tensor) -> Tensor:
        """The gradient times ``upstream``, a scalar or [N]; overwrites what is held."""
        if self.size is not None:
            by = self.size * (upstream.unsqueeze(1) if upstream.ndim else upstream)
            for block in blocks(self.rows):  # a factor of float32 would widen all rows at once
                self.rows[block].mul_(by[block])
        # A factor of 1, the usual one, is not worth a pass over memory (asking a GPU for it is not
        # worth it either).
        elif not (upstream.ndim == 0 and upstream.device.type == "cpu" and upstream.item() == 1):
            self.rows.mul_(upstream.unsqueeze(1) if upstream.ndim else upstream)
        return self.rows


Sweep = Callable[..., tuple[Tensor, list[Gradient | None]]]
"""``(*inputs, wanted) -> (value, gradients)``; ``wanted`` says which gradients are needed. A value
with one entry a row comes with gradients of the sum of its entries."""


def together(sweep: Sweep, *inputs: Tensor) -> Tensor:
    """Evaluate a sweep under autograd.

    Raises:
        BackendError: In backward, when asked to keep a graph of the gradient.
    """
    return _Together.apply(sweep, *inputs)


def blocks(x: Tensor, width: int | None = None) -> Iterator[slice]:
    """Slices of rows of ``x`` with about `BLOCK` elements, ``width`` elements counted a row."""
    width = x.shape[1] if width is None else width
    elements = BLOCK.get(x.device.type, BLOCK["cuda"])
    if x.device.type == "cpu":
        elements *= min(torch.get_num_threads(), 4)
    size = max(1, elements // max(width, 1))
    for start in range(0, len(x), size):
        yield slice(start, min(start + size, len(x)))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what a criterion computes: float64 as it is, everything else in float32."""
    return dtype if dtype == torch.float64 else torch.float32


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sweep: Sweep, *inputs: Tensor) -> Tensor:
        ctx.sweep, ctx.wanted = sweep, ctx.needs_input_grad[1:]
        ctx.save_for_backward(*inputs)
        value, ctx.gradients = sweep(*inputs, wanted=ctx.wanted)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; a second derivative of 0 would be silent
            raise BackendError(
                "criteria: the blocked form cannot be differentiated twice; pass blocked=False"
            )
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = ctx.sweep(*ctx.saved_tensors, wanted=ctx.wanted)
        return None, *(None if held is None else held.scaled(upstream) for held in gradients)
