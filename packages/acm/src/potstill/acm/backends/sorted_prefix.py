"""Tokens sorted by choice, so that every matrix product is dense and none is wasted."""

from __future__ import annotations

from functools import partial
from itertools import accumulate, groupby, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.acm.backends.autotune import Autotuner
from potstill.acm.backends.learners import Learners

__all__ = ["ROWS", "sorted_prefix", "tuner"]

ROWS = (512, 1024, 2048, 4096)
"""Tokens a block, roughly: fewer keep what is hidden in cache, more make better products."""

tuner = Autotuner()
"""What was found fastest, for each shape."""


def sorted_prefix(
    x: Float[Tensor, "tokens in"],
    choices: Int[Tensor, " tokens"],
    learners: Learners,
    rows: int | None = None,
) -> Float[Tensor, "tokens out"]:
    """Sort the tokens by choice, dearest first, and run dense products over blocks of them.

    Learner n is wanted by the first tokens of a block, and adds to their sums: no token is
    multiplied in vain. Learners that the same tokens want run as one. When all tokens choose alike,
    as at full budget, nothing is sorted or moved: it is the dense module.

    Differentiable; with gradients there is one block for each choice.

    Args:
        x: Tokens.
        choices: Learners of each token, from 0 to N.
        learners: The learners.
        rows: Tokens a block, roughly; by default the fastest of `ROWS`, measured on the first call
            of each shape and budget (in eighths) and then remembered.
    """
    counts = torch.bincount(choices, minlength=learners.total + 1).tolist()
    if max(counts) == len(x):
        return _alike(x, counts.index(len(x)), learners)
    order = torch.argsort(choices, descending=True)
    if torch.is_grad_enabled():
        return _differentiable(x, order, counts, learners)
    wanted = list(accumulate(counts[:0:-1]))[::-1]  # tokens of learner 1 to N: ever fewer
    if rows is None:
        ways = {size: partial(_blocks, x, order, wanted, learners, size) for size in ROWS}
        rows = tuner.choose(_key(x, wanted, learners), ways, x.device)
    return _blocks(x, order, wanted, learners, rows)


def _alike(x: Tensor, k: int, learners: Learners) -> Tensor:
    """All tokens choose ``k``; with k = 0 there is no product at all."""
    if k == 0:
        return x[:, :0] @ learners.down[:0]  # zeros that still belong to the graph
    return learners.prefix(k)(x)


def _key(x: Tensor, wanted: list[int], learners: Learners) -> tuple[object, ...]:
    """What the best block depends on; the number of tokens in powers of two."""
    spent = sum(wanted) / (learners.total * len(x))
    shape = (len(x).bit_length(), *learners.up.shape, len(learners.shift), learners.bounds)
    return (*shape, round(8 * spent), x.dtype, x.device, torch.get_num_threads())


def _blocks(x: Tensor, order: Tensor, wanted: list[int], learners: Learners, rows: int) -> Tensor:
    y = x.new_zeros(len(x), len(learners.shift))
    live = wanted[0]
    pieces = max(1, round(live / rows))
    for start, end in pairwise(live * i // pieces for i in range(pieces + 1)):
        block = order[start:end]
        inside = [min(max(count - start, 0), len(block)) for count in wanted]
        # onto zeros, since index_add_ takes half the time of index_copy_
        y.index_add_(0, block, _stairs(x.index_select(0, block), inside, learners))
    return y


def _stairs(x: Tensor, wanted: list[int], learners: Learners) -> Tensor:
    """Learner n over the first ``wanted[n - 1]`` tokens; all of them want the first."""
    y = x.new_empty(len(x), len(learners.shift))
    first = 0
    for rows, alike in groupby(wanted):
        last = first + len(list(alike))
        if rows:
            part = learners.between(first, last)
            hidden = part.hidden(x[:rows])
            if first == 0:
                torch.addmm(part.shift, hidden, part.down, out=y)
            else:
                sums = y[:rows]  # torch counts the operations of addmm, but not of addmm_
                torch.addmm(sums, hidden, part.down, out=sums)
        first = last
    return y


def _differentiable(x: Tensor, order: Tensor, counts: list[int], learners: Learners) -> Tensor:
    runs = x.index_select(0, order).split(counts[::-1])
    parts = [_alike(run, learners.total - i, learners) for i, run in enumerate(runs) if len(run)]
    return torch.zeros_like(torch.cat(parts)).index_copy(0, order, torch.cat(parts))
