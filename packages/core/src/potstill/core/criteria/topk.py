"""Criteria on the k most probable classes of the teacher: what a cache can hold."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from potstill.core.criteria.divergence import Logits, Temperature
from potstill.core.criteria.logit import kl_rows, softened, softmax_and_log_sum
from potstill.core.criteria.rows import (
    RowForm,
    RowOptions,
    evaluate,
    positive,
    squared,
    temperature,
)
from potstill.core.errors import ConfigError, ShapeError

__all__ = ["sparse_kl", "topk_kl"]

Tail = Literal["bucket", "drop"]


def _log_rest(log_top: Tensor) -> Tensor:
    """``log(1 - sum exp(log_top))`` from the classes' logs, -inf where they hold everything."""
    held = log_top.exp().sum(-1)
    return torch.log1p(-held.clamp_max(1))


def _split(log_q: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The student's log-probabilities of the chosen classes, and of all others together."""
    rest = log_q.scatter(1, indices, -torch.inf)
    empty = rest.isneginf().all(1)  # k = C, or all others masked: logsumexp has no gradient there
    tail = rest.masked_fill(empty.unsqueeze(1), 0).logsumexp(-1).masked_fill(empty, -torch.inf)
    return log_q.gather(1, indices), tail


def _compare(log_p: Tensor, tail_p: Tensor, log_q: Tensor, tail_q: Tensor, tail: Tail) -> Tensor:
    """KL over k classes and, with ``tail="bucket"``, one more that holds all others."""
    if tail == "drop":
        return kl_rows(torch.log_softmax(log_p, -1), torch.log_softmax(log_q, -1))
    p = torch.cat([log_p, tail_p.unsqueeze(1)], 1)
    q = torch.cat([log_q, tail_q.unsqueeze(1)], 1)
    return kl_rows(p, q)


def _topk(z_s: Tensor, z_t: Tensor, T: Temperature, k: int, tail: Tail) -> Tensor:
    indices = z_t.topk(k, -1).indices
    log_p, tail_p = _split(torch.log_softmax(z_t / T, -1), indices)
    log_q, tail_q = _split(torch.log_softmax(z_s / T, -1), indices)
    return _compare(log_p, tail_p, log_q, tail_q, tail)


def _topk_closed(
    z_s: Tensor, z_t: Tensor, T: Temperature, k: int, tail: Tail
) -> tuple[Tensor, Tensor]:
    x_s, x_t = softened(z_s, T), softened(z_t, T)
    top_t, indices = x_t.topk(k, -1)
    top_s = x_s.gather(1, indices)
    if tail == "drop":
        log_p, log_q = torch.log_softmax(top_t, -1), torch.log_softmax(top_s, -1)
        own = log_q.exp() - log_p.exp()
        gradient = torch.zeros_like(z_s).scatter_(1, indices, own).div_(T)
        return torch.linalg.vecdot(log_p.exp(), log_p - log_q), gradient
    q, *log_s = softmax_and_log_sum(x_s, 1.0)
    log_q = top_s - (log_s[0] + log_s[1]).unsqueeze(1)
    p = torch.softmax(x_t, -1)
    log_p = top_t - top_t[:, :1] + p.gather(1, indices[:, :1]).log()
    own = q.gather(1, indices).sub_(log_p.exp())
    q_rest, p_rest = (x.scatter_(1, indices, 0).sum(-1) for x in (q, p))
    value = torch.linalg.vecdot(log_p.exp(), log_p - log_q) + p_rest * (p_rest / q_rest).log()
    # The other classes share what their bucket gets, as the student shares it out.
    gradient = q.mul_((1 - p_rest / q_rest).unsqueeze(1)).scatter_(1, indices, own)
    return value, gradient if isinstance(T, float) and T == 1 else gradient.div_(T)


# Finding the k is most of the time, and faster on many rows at once.
_TOPK = RowForm(_topk, _topk_closed, cost=0.25)


def topk_kl(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    k: int,
    tail: Tail = "bucket",
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """`kd` on the teacher's k most probable classes.

    Source: after TopKLD (Dissecting the Bit-Level Scaling Laws); the treatment of
    the other classes is ours. ``L = T^2 mean_n sum_{c in top k} p_c (log p_c - log q_c)``, where
    ``tail="bucket"`` adds one class that holds all others: a lower bound
    of the forward KL, equal to it at k = C. ``"drop"`` renormalizes both models on the k classes.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        k: Number of classes, 1 to C.
        tail: Treatment of the other classes.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: k or T out of range, or an unknown tail.
    """
    T = temperature("topk_kl", T)
    classes = z_s.shape[options.get("dim", -1)]
    if not 1 <= k <= classes or tail not in ("bucket", "drop"):
        raise ConfigError(
            f"topk_kl: k must be in [1, {classes}] and tail bucket or drop, got {k}, {tail!r}"
        )
    factor = squared(T, t_squared)
    return evaluate("topk_kl", _TOPK, z_s, z_t, T, k, tail, target=target, factor=factor, **options)


def sparse_kl(
    z_s: Logits,
    indices: Int[Tensor, "*rows k"],
    log_p: Float[Tensor, "*rows k"],
    target: Shaped[Tensor, ...] | None = None,
    *,
    tail: Tail = "bucket",
    T: float = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """`topk_kl` to a stored teacher: k classes and their log-probabilities.

    Source: as `topk_kl`. ``L = T^2 mean_n sum_{c in stored} p_c (log p_c - log q_c)`` and the term
    of the tail. The stored distribution is the teacher's at the temperature T it was written with;
    what is missing to 1 is the mass of all other classes.

    Args:
        z_s: Logits of the student, [..., C].
        indices: Classes, [..., k].
        log_p: The teacher's log-probabilities of them, at T.
        target: Labels [...]; only a mask.
        tail: As in `topk_kl`.
        T: Temperature > 0.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`; ``teacher_grad`` has no meaning here.

    Raises:
        ShapeError: Shapes that do not fit.
        ConfigError: T is not positive, or an unknown tail.
    """
    positive("sparse_kl", "T", T)
    if indices.shape != log_p.shape or indices.shape[:-1] != z_s.shape[:-1]:
        raise ShapeError(
            f"sparse_kl: indices and log_p must be {[*z_s.shape[:-1], 'k']}, got "
            f"{list(indices.shape)} and {list(log_p.shape)}"
        )
    if tail not in ("bucket", "drop"):
        raise ConfigError(f"sparse_kl: tail must be bucket or drop, got {tail!r}")
    k = indices.shape[-1]
    return evaluate(
        "sparse_kl",
        _SPARSE,
        z_s,
        z_s.detach(),
        indices.reshape(-1, k).long(),
        log_p.reshape(-1, k).detach(),
        T,
        tail,
        target=target,
        factor=squared(T, t_squared),
        **options,
    )


def _sparse(
    z_s: Tensor, _: Tensor, indices: Tensor, log_p: Tensor, T: Temperature, tail: Tail
) -> Tensor:
    log_p = log_p.to(z_s.dtype)
    log_q, tail_q = _split(torch.log_softmax(z_s / T, -1), indices)
    whole = indices.shape[1] == z_s.shape[1]  # what is missing to 1 is then rounding
    tail_p = torch.full_like(tail_q, -torch.inf) if whole else _log_rest(log_p)
    return _compare(log_p, tail_p, log_q, tail_q, tail)


_SPARSE = RowForm(_sparse)
