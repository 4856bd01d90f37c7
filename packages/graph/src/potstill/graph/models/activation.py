"""ReLU and dropout in one step, for training on the CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["relu_dropout"]

_PART = 2**18  # values at a time: with their random bits they stay in the second-level cache
_LEVELS = 2**16  # of a random number


class _ReluDropout(torch.autograd.Function):
    """In place; the result alone tells where the gradient passes."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, p: float) -> Tensor:
        ctx.mark_dirty(z)
        ctx.scale = 1 / (1 - p)
        dropped = round(p * _LEVELS) - _LEVELS // 2  # as int16 counts
        for part in z.view(-1).split(_PART):
            words = torch.empty(-(-len(part) // 4), dtype=torch.int64).random_(-(2**63), None)
            keep = words.view(torch.int16)[: len(part)] >= dropped
            part.relu_().mul_(keep).mul_(ctx.scale)
        ctx.save_for_backward(z)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, y, 0).mul_(ctx.scale), None


def relu_dropout(z: Tensor, p: float, training: bool) -> Tensor:
    """``dropout(relu(z), p)``; overwrites ``z`` where that saves passes over memory.

    Torch draws a random number a value, one after the other, which on the CPU takes half of a
    student's step. Here one draw serves four values, so p is rounded to 16 bits, and ReLU and
    dropout pass the gradient by one comparison with the result.

    Args:
        z: Any shape; not a leaf that requires a gradient.
        p: Share of values that are dropped, in [0, 1); the others are scaled by ``1 / (1 - p)``.
        training: Mode of training; False drops nothing.
    """
    if not training or p == 0:
        return z.relu()
    if z.device.type != "cpu" or not z.is_contiguous():
        return F.dropout(z.relu(), p)
    y: Tensor = _ReluDropout.apply(z, p)
    return y
