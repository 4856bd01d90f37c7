"""Pairs of token and learner, sorted by learner, through grouped matrix products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from potstill.acm.backends.learners import Learners, activate
from potstill.acm.backends.sorted_prefix import sorted_prefix
from potstill.core import ConfigError, ShapeError

__all__ = ["grouped_mm"]


def grouped_mm(
    x: Float[Tensor, "tokens in"],
    choices: Int[Tensor, " tokens"],
    learners: Learners,
    capacity: float = 1.0,
) -> Float[Tensor, "tokens out"]:
    """Two grouped products over all (token, learner) pairs that were chosen.

    The offsets stay on the device, so with ``capacity=1`` the host never waits and a CUDA graph
    can hold it; torch's fast path is bfloat16 on compute capability 9.0. Widths that are unequal or
    no multiple of 8 are padded with units that are always zero. Gated networks (SwiGLU) are
    computed by `sorted_prefix`.

    Args:
        x: Tokens.
        choices: Learners of each token, from 0 to N.
        learners: The learners.
        capacity: Size of the buffer of pairs as a share of all pairs, in (0, 1]. Below 1 the host
            checks that the pairs fit, and where they do not `sorted_prefix` does the work.

    Raises:
        ConfigError: ``capacity`` is not in (0, 1].
        ShapeError: Input or output width is not a multiple of 8, which torch's kernel needs.
    """
    if learners.lift is not None:
        return sorted_prefix(x, choices, learners)
    if not 0 < capacity <= 1:
        raise ConfigError(f"grouped_mm: capacity must be in (0, 1], got {capacity}; 1 always fits")
    if x.shape[1] % 8 or len(learners.shift) % 8:
        raise ShapeError(
            f"grouped_mm: input and output width must be multiples of 8, got {x.shape[1]} and "
            f"{len(learners.shift)}; use the backend sorted_prefix"
        )
    tokens, count = len(x), learners.total
    steps = torch.arange(1, count + 1, device=x.device)
    wanted = (choices[:, None] >= steps).sum(0)
    ends = wanted.cumsum(0)
    size = math.ceil(capacity * tokens * count)
    if capacity < 1 and int(ends[-1]) > size:
        return sorted_prefix(x, choices, learners)

    # Pair p belongs to the first learner that ends behind it; its tokens are the first in order.
    order = torch.argsort(choices, descending=True)
    pair = torch.arange(size, device=x.device)
    learner = torch.searchsorted(ends, pair, right=True).clamp_(max=count - 1)
    rank = pair - (ends - wanted)[learner]
    used = (pair < ends[-1])[:, None]
    token = order[rank.clamp_(0, max(tokens - 1, 0))]

    # What grouped_mm leaves behind the last offset is undefined, results and gradients alike, and
    # so are the gradients of a learner without tokens: `where` keeps them out.
    up, bias, down = _stacked(learners)
    if torch.is_grad_enabled():
        up, down = (torch.where((wanted > 0)[:, None, None], t, 0.0) for t in (up, down))
    offsets = ends.to(torch.int32)
    hidden = F.grouped_mm(torch.where(used, x[token], 0.0), up.transpose(1, 2), offs=offsets)
    hidden = activate(torch.where(used, hidden, 0.0) + bias[learner], learners.activation)
    parts = F.grouped_mm(torch.where(used, hidden, 0.0), down, offs=offsets)
    parts = torch.where(used, parts, 0.0)
    y = x.new_zeros(tokens, len(learners.shift)).index_add(0, token, parts)
    return y + (choices > 0)[:, None] * learners.shift


def _stacked(learners: Learners) -> tuple[Tensor, Tensor, Tensor]:
    """Weights as [learners width in], [learners width], [learners width out]."""
    tensors = (learners.up, learners.bias, learners.down)
    if learners.equal and learners.widths[0] % 8 == 0:
        up, bias, down = (t.unflatten(0, (learners.total, -1)) for t in tensors)
        return up, bias, down
    width = 8 * math.ceil(max(learners.widths) / 8)

    def stack(tensor: Tensor) -> Tensor:
        parts = tensor.split(learners.widths)
        pads = [(0, 0) * (tensor.ndim - 1) + (0, width - len(part)) for part in parts]
        return torch.stack([F.pad(part, pad) for part, pad in zip(parts, pads, strict=True)])

    return stack(tensors[0]), stack(tensors[1]), stack(tensors[2])
