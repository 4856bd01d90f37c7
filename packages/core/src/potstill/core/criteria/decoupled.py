"""Criteria that treat the labelled class and the others apart.

The softmax over the other classes is a softmax with the label's logit at -inf, so nothing
underflows: the authors' codes take the log of a difference of probabilities, or mask with -1000.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from potstill.core.criteria.logit import cross_entropy_rows, kl_rows, softmax_and_log_sum
from potstill.core.criteria.rows import RowForm, RowOptions, evaluate, squared, temperature
from potstill.core.errors import ShapeError

__all__ = ["dkd", "nkd"]


def _apart(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The label's log-odds [n], and the logits with the label at -inf [n C]."""
    label = labels.unsqueeze(1)
    rest = z.scatter(1, label, -torch.inf)
    return z.gather(1, label).squeeze(1) - rest.logsumexp(-1), rest


def _odds_and_rest(z: Tensor, labels: Tensor, T: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The label's log-odds [n], the softmax of the others [n C] and its log-sum-exp [n]."""
    label = labels.unsqueeze(1)
    z = z / T
    hit = z.gather(1, label).squeeze(1)
    rest, top, log_sum = softmax_and_log_sum(z.scatter_(1, label, -torch.inf), 1.0)
    return hit - (top + log_sum), rest, top + log_sum


def _two_classes(odds: Tensor) -> Tensor:
    return torch.stack([F.logsigmoid(odds), F.logsigmoid(-odds)], -1)


def _column(x: float | Tensor) -> float | Tensor:
    return x.unsqueeze(1) if isinstance(x, Tensor) and x.ndim else x


def _flat(T: float | Tensor) -> float | Tensor:
    return T.squeeze(1) if isinstance(T, Tensor) else T


def _dkd(
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor,
    T: float | Tensor,
    alpha: float | Tensor,
    beta: float | Tensor,
) -> Tensor:
    odds_s, rest_s = _apart(z_s / T, labels)
    odds_t, rest_t = _apart(z_t / T, labels)
    target = kl_rows(_two_classes(odds_t), _two_classes(odds_s))
    others = kl_rows(torch.log_softmax(rest_t, -1), torch.log_softmax(rest_s, -1))
    return alpha * target + beta * others


def _dkd_closed(
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor,
    T: float | Tensor,
    alpha: float | Tensor,
    beta: float | Tensor,
) -> tuple[Tensor, Tensor]:
    odds_s, q, sum_s = _odds_and_rest(z_s, labels, T)
    odds_t, p, sum_t = _odds_and_rest(z_t, labels, T)
    target = kl_rows(_two_classes(odds_t), _two_classes(odds_s))
    others = torch.linalg.vecdot(p, z_t - z_s) / _flat(T) - (sum_t - sum_s)
    # d target / d z_y = q_y - p_y =: lead, and - lead * q on the others; d others = q - p.
    lead = alpha * (odds_s.sigmoid() - odds_t.sigmoid())
    gradient = q.mul_(_column(beta - lead)).sub_(p.mul_(_column(beta)))
    gradient.scatter_(1, labels.unsqueeze(1), lead.unsqueeze(1))
    return alpha * target + beta * others, gradient.div_(T)


_DKD = RowForm(_dkd, _dkd_closed, labelled=True)


def dkd(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Shaped[Tensor, ...],
    *,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 8.0,
    T: float | Tensor = 4.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Decoupled distillation: the label against the rest, and the rest among themselves.

    Source: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, Eq. (7).
    ``L = T^2 mean_n [alpha KL(b_t || b_s) + beta KL(p' || q')]`` with ``b = (p_y, 1 - p_y)`` and
    p', q' the softmax over the classes other than y. ``alpha = 1, beta_n = 1 - p_y`` is `kd`.

    Args:
        z_s: Logits of the student, [..., C], C at least 2.
        z_t: Logits of the teacher, same shape.
        target: Labels [...] int64.
        alpha: Weight of the first part, one number or one for each row.
        beta: Weight of the second; the authors take 8, and 2 to 6 for some pairs.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: Shapes that differ, fewer than 2 classes, or a label out of range.
        ConfigError: T is not positive, or the target is not labels.
    """
    T = temperature("dkd", T)
    _require_two("dkd", z_s, options)
    alpha, beta = (w.reshape(-1) if isinstance(w, Tensor) else w for w in (alpha, beta))
    return evaluate(
        "dkd",
        _DKD,
        z_s,
        z_t,
        T,
        alpha,
        beta,
        target=target,
        factor=squared(T, t_squared),
        **options,
    )


def _nkd(
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor,
    T: float | Tensor,
    gamma: float,
    factor: float | Tensor,
) -> Tensor:
    label = labels.unsqueeze(1)
    log_q = torch.log_softmax(z_s, -1).gather(1, label).squeeze(1)
    p = torch.softmax(z_t, -1).gather(1, label).squeeze(1)
    _, rest_s = _apart(z_s / T, labels)
    _, rest_t = _apart(z_t / T, labels)
    others = cross_entropy_rows(torch.softmax(rest_t, -1), torch.log_softmax(rest_s, -1))
    return -p * log_q.masked_fill(p == 0, 0) + gamma * factor * others


def _nkd_closed(
    z_s: Tensor,
    z_t: Tensor,
    labels: Tensor,
    T: float | Tensor,
    gamma: float,
    factor: float | Tensor,
) -> tuple[Tensor, Tensor]:
    label = labels.unsqueeze(1)
    odds_s, q, sum_s = _odds_and_rest(z_s, labels, T)
    odds_t, p, _ = _odds_and_rest(z_t, labels, T)
    others = sum_s - torch.linalg.vecdot(p, z_s) / _flat(T)
    slope = _column(gamma * factor / _flat(T))
    if isinstance(T, float) and T == 1:
        p_y = odds_t.sigmoid()
        gradient = q.mul_((p_y * (-odds_s).sigmoid()).unsqueeze(1) + slope).sub_(p.mul_(slope))
        log_q, q_y = F.logsigmoid(odds_s), odds_s.sigmoid()
    else:
        full, top, log_sum = softmax_and_log_sum(z_s, 1.0)
        p_y = (z_t.gather(1, label).squeeze(1) - z_t.logsumexp(-1)).exp()
        log_q = z_s.gather(1, label).squeeze(1) - (top + log_sum)
        q_y = log_q.exp()
        gradient = q.sub_(p).mul_(slope).add_(full.mul_(p_y.unsqueeze(1)))
    gradient.scatter_(1, label, (p_y * (q_y - 1)).unsqueeze(1))
    return -p_y * log_q + gamma * factor * others, gradient


_NKD = RowForm(_nkd, _nkd_closed, labelled=True)


def nkd(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Shaped[Tensor, ...],
    *,
    gamma: float = 1.5,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Normalized distillation: the label's own soft loss, and the other classes renormalized.

    Source: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023.
    ``L = mean_n [-p_y log q_y - gamma T^2 sum_{c != y} p' log q']``; the first part has
    temperature 1 and the full softmax, p' and q' are the softmax at T over classes other than y.

    Args:
        z_s: Logits of the student, [..., C], C at least 2.
        z_t: Logits of the teacher, same shape.
        target: Labels [...] int64.
        gamma: Weight of the second part.
        T: Temperature > 0 of the second part, one number or one for each row.
        t_squared: Multiply the second part by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: Shapes that differ, fewer than 2 classes, or a label out of range.
        ConfigError: T is not positive, or the target is not labels.
    """
    T = temperature("nkd", T)
    _require_two("nkd", z_s, options)
    return evaluate(
        "nkd", _NKD, z_s, z_t, T, gamma, squared(T, t_squared), target=target, **options
    )


def _require_two(name: str, z_s: Tensor, options: RowOptions) -> None:
    if z_s.ndim and z_s.shape[options.get("dim", -1)] < 2:
        raise ShapeError(
            f"{name}: at least 2 classes are needed to set one apart, got {list(z_s.shape)}"
        )
