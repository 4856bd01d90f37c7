"""Learner by learner over the tokens that want it: what graph capture and ONNX understand."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.acm.backends.learners import Learners

__all__ = ["gathered"]


def gathered(
    x: Float[Tensor, "tokens in"], choices: Int[Tensor, " tokens"], learners: Learners
) -> Float[Tensor, "tokens out"]:
    """Gather the tokens of each learner, run it, and add the rows back.

    Static control flow with data-dependent sizes (NonZero, Gather, ScatterElements), so it is
    captured whole by `torch.export`. Eager it is the usual boolean-mask way, and slower than
    `sorted_prefix`: every learner gathers and scatters its tokens anew.
    """
    y = x.new_zeros(x.shape[0], learners.shift.shape[0])
    for n in range(1, len(learners.bounds)):  # torch 2.10 traces no property and no call of a tuple
        (rows,) = torch.nonzero(choices >= n, as_tuple=True)
        part = learners.only(n)
        found = torch.addmm(part.shift, part.hidden(x.index_select(0, rows)), part.down)
        y = y.index_add(0, rows, found)
    return y
