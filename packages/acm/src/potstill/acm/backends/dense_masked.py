"""The reference: all learners run for all tokens, and a mask decides what counts."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.acm.backends.learners import Learners, on_device

__all__ = ["dense_masked", "weighted"]


def weighted(
    x: Float[Tensor, "tokens in"], weights: Float[Tensor, "tokens learners"], learners: Learners
) -> Float[Tensor, "tokens out"]:
    """Sum of all learners with a weight for each token and learner: ``sum_n m[t n] s_n(x[t])``.

    Costs what the dense module costs, and is differentiable in everything: what training uses.
    """
    hidden = learners.hidden(x)
    if learners.equal:
        hidden = (hidden.unflatten(1, (learners.total, -1)) * weights[:, :, None]).flatten(1)
    else:
        owner = tuple(n for n, width in enumerate(learners.widths) for _ in range(width))
        hidden = hidden * weights[:, on_device(owner, x.device, torch.long)]
    return hidden @ learners.down + weights[:, :1] * learners.shift


def dense_masked(
    x: Float[Tensor, "tokens in"], choices: Int[Tensor, " tokens"], learners: Learners
) -> Float[Tensor, "tokens out"]:
    """Learner n counts for a token when ``n <= choices``; nothing is skipped."""
    order = torch.arange(learners.total, device=x.device)
    return weighted(x, (order < choices[:, None]).to(x.dtype), learners)
