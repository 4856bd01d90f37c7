"""Tokens sorted by choice, so that every matrix product is dense and none is wasted."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.acm.backends.autotune import Autotuner
from potstill.acm.learners import Learners

__all__ = ["Plan", "sorted_prefix", "tuner"]


class Plan(NamedTuple):
    """How the sorted tokens are cut into matrix products.

    Attributes:
        by: ``"choice"``: the tokens of one choice k go through the first k learners as one network
            of that width. ``"learner"``: learner n runs over all tokens with k >= n, which are the
            first of the sorted ones, and adds to their sum.
        rows: At most so many tokens a product, roughly: what is hidden then stays in cache.
    """

    by: str
    rows: int


PLANS = (Plan("choice", 512), Plan("choice", 1024), Plan("choice", 4096), Plan("learner", 1 << 20))

tuner = Autotuner()
"""What was found fastest, for each shape."""


def sorted_prefix(
    x: Float[Tensor, "tokens in"],
    choices: Int[Tensor, " tokens"],
    learners: Learners,
    plan: Plan | None = None,
) -> Float[Tensor, "tokens out"]:
    """Sort the tokens by choice and run dense products over runs of them.

    When all tokens choose alike, as at full budget, nothing is sorted or moved: it is the dense
    module. Else the cut is the ``plan``, by default the fastest of `PLANS`, measured on the first
    call of each shape and budget (in eighths) and then remembered. Differentiable; with gradients
    the plan is one product a choice.
    """
    counts = torch.bincount(choices, minlength=learners.total + 1).tolist()
    if max(counts) == len(x):
        return _alike(x, counts.index(len(x)), learners)
    order = torch.argsort(choices, descending=True)
    if torch.is_grad_enabled():
        return _differentiable(x, order, counts, learners)
    if plan is None:
        ways = {way: partial(_RUNS[way.by], x, order, counts, learners, way) for way in PLANS}
        plan = tuner.choose(_key(x, counts, learners), ways, x.device)
    return _RUNS[plan.by](x, order, counts, learners, plan)


def _alike(x: Tensor, k: int, learners: Learners) -> Tensor:
    """All tokens choose ``k``; with k = 0 there is no product at all."""
    if k == 0:
        return x[:, :0] @ learners.down[:0]  # zeros that still belong to the graph
    return learners.prefix(k)(x)


def _key(x: Tensor, counts: list[int], learners: Learners) -> tuple[object, ...]:
    """What the best plan depends on; the number of tokens in powers of two."""
    spent = sum(k * count for k, count in enumerate(counts)) / (learners.total * len(x))
    shape = (len(x).bit_length(), *learners.up.shape, len(learners.shift), learners.bounds)
    return (*shape, round(8 * spent), x.dtype, x.device, torch.get_num_threads())


def _by_choice(
    x: Tensor, order: Tensor, counts: list[int], learners: Learners, plan: Plan
) -> Tensor:
    y = x.new_empty(len(x), len(learners.shift))
    start = 0
    for k in range(learners.total, 0, -1):
        end = start + counts[k]
        pieces = max(1, round(counts[k] / plan.rows))
        cuts = [start + counts[k] * i // pieces for i in range(pieces + 1)]
        for first, last in pairwise(cuts):
            if last > first:
                rows = order[first:last]
                y.index_copy_(0, rows, learners.prefix(k)(x.index_select(0, rows)))
        start = end
    return y.index_fill_(0, order[start:], 0.0)


def _by_learner(
    x: Tensor, order: Tensor, counts: list[int], learners: Learners, plan: Plan
) -> Tensor:
    y = x.new_zeros(len(x), len(learners.shift))
    tokens = x.index_select(0, order)
    wanted = len(x)
    for n in range(1, learners.total + 1):
        wanted -= counts[n - 1]
        if wanted == 0:
            break
        learner = learners.only(n)
        hidden = learner.hidden(tokens[:wanted])
        if n == 1:
            y[:wanted] += learner.shift
        y[:wanted].addmm_(hidden, learner.down)
    return torch.empty_like(y).index_copy_(0, order, y)


def _differentiable(x: Tensor, order: Tensor, counts: list[int], learners: Learners) -> Tensor:
    runs = x.index_select(0, order).split(counts[::-1])
    parts = [_alike(run, learners.total - i, learners) for i, run in enumerate(runs) if len(run)]
    return torch.zeros_like(torch.cat(parts)).index_copy(0, order, torch.cat(parts))


_RUNS = {"choice": _by_choice, "learner": _by_learner}
