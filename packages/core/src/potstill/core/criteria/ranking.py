"""PLD: the teacher's ranking of the classes as a Plackett-Luce model."""

from __future__ import annotations

from typing import Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.core.criteria.rows import RowForm, RowOptions, evaluate, temperature

__all__ = ["pld"]


def _ranking(z_t: Tensor, labels: Tensor) -> Tensor:
    """The label first, then the other classes by descending logit, ties by class index [n C]."""
    first = z_t.scatter(1, labels.unsqueeze(1), torch.inf)
    return first.argsort(dim=-1, descending=True, stable=True)


def _fast_ranking(z_t: Tensor, labels: Tensor) -> Tensor:
    """`_ranking` for float32 on the CPU.

    A float's bits, flipped where it is negative, order like the float. With the class index in
    the lower half of an int64 all keys differ, so numpy's vectorized sort, which is not stable
    and moves no payload, gives the stable order: several times as fast as torch's.
    """
    first = (z_t + 0.0).scatter(1, labels.unsqueeze(1), torch.inf)  # + 0.0 makes -0.0 equal 0.0
    bits = first.view(torch.int32)
    rising = bits ^ (bits >> 31).bitwise_and_(0x7FFFFFFF)
    keys = rising.bitwise_not_().long().bitwise_left_shift_(32)  # ~x falls where x rises
    keys += torch.arange(z_t.shape[1])
    keys.numpy().sort(axis=-1)
    return keys.bitwise_and_(0xFFFFFFFF)


def _pld(z_s: Tensor, z_t: Tensor, labels: Tensor, T: float | Tensor) -> Tensor:
    order = _ranking(z_t, labels)
    alpha = torch.softmax(z_t / T, -1).detach().gather(1, order)
    ranked = z_s.gather(1, order)
    # A class without teacher mass is not chosen; one that the student masks ranks as nothing.
    tail = ranked.masked_fill((alpha == 0) & ranked.isneginf(), torch.finfo(z_s.dtype).min)
    tail = tail.flip(-1).logcumsumexp(-1).flip(-1)
    return (alpha * (tail - ranked).masked_fill(alpha == 0, 0)).sum(-1)


def _pld_closed(
    z_s: Tensor, z_t: Tensor, labels: Tensor, T: float | Tensor
) -> tuple[Tensor, Tensor]:
    fast = z_t.dtype == torch.float32 and z_t.device.type == "cpu"
    order = _fast_ranking(z_t, labels) if fast else _ranking(z_t, labels)
    alpha = torch.softmax(z_t / T, -1).gather(1, order)
    ranked = z_s.gather(1, order)
    top = ranked.amax(-1, keepdim=True)
    # float64 spans e^-745: sums of exponentials need no logarithms on the way. What falls below
    # even that is infinite or NaN here and goes to the reference.
    own = (ranked - top).double().exp_()
    tail = own.flip(-1).cumsum(-1).flip(-1)
    value = torch.linalg.vecdot(alpha, tail.log().to(alpha.dtype) + (top - ranked))
    # d / d z of rank j: e^z_j sum_{k <= j} alpha_k / tail_k - alpha_j
    slope = (alpha / tail).cumsum_(-1).mul_(own).sub_(alpha)
    return value, torch.empty_like(z_s).scatter_(1, order, slope.to(z_s.dtype))


_PLD = RowForm(_pld, _pld_closed, labelled=True, cost=2)


def pld(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Int[Tensor, ...],
    *,
    T: float | Tensor = 1.0,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Plackett-Luce distillation: rank the label first, then the rest as the teacher does.

    Source: PLD, arXiv 2506.12542, 2025; gradient: its appendix A.
    ``L = mean_n sum_k alpha_k [log sum_{l >= k} exp z_s[pi_l] - z_s[pi_k]]`` with pi the label and
    then the other classes by descending ``z_t``, ``alpha_k = softmax(z_t / T)[pi_k]`` without
    gradient. The student is not tempered, there is no ``T ** 2``, and no cross-entropy need be
    added: the first term is one. Convex in ``z_s``. Ties in ``z_t`` go to the lower class index.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...] int64.
        T: Temperature > 0 of the weights; the authors take 1 on ImageNet and 4 on CIFAR-100.
        **options: See `RowOptions`.

    Raises:
        ShapeError: Shapes that differ, or a label out of range.
        ConfigError: T is not positive, or the target is not labels.
    """
    T = temperature("pld", T)
    return evaluate("pld", _PLD, z_s, z_t, T, target=target, **options)
