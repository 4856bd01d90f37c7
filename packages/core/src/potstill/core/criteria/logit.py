"""Criteria on logits: the softened distributions of a teacher, and the logits themselves.

All take ``(z_s, z_t, target=None)`` and the keywords of `RowOptions`; ``target`` serves as a mask
here (rows labelled ``ignore_index`` do not count) unless the criterion says otherwise.
Temperature: ``p = softmax(z_t / T)``, ``q = softmax(z_s / T)``; what matches softened
distributions is multiplied by ``T ** 2``, so that the size of the gradient does not depend on T.
"""

from __future__ import annotations

from typing import Unpack

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from potstill.core.criteria.rows import (
    RowForm,
    RowOptions,
    evaluate,
    squared,
    temperature,
)

__all__ = ["kd", "logit_mse", "soft_ce"]


def kl_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum_c p (log p - log q)`` [n], where a class without mass in p contributes nothing."""
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(-1)


def cross_entropy_rows(p: Tensor, log_q: Tensor) -> Tensor:
    """``-sum_c p log q`` [n], where a class without mass in p contributes nothing."""
    return -(p * log_q.masked_fill(p == 0, 0)).sum(-1)


def softmax_and_log_sum(z: Tensor, T: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``softmax(z / T)``, the maximum of ``z / T`` and the log of the sum of exp above it."""
    z = z if isinstance(T, float) and T == 1 else z / T
    p = torch.softmax(z, -1)
    # The largest probability is exp(0) / sum: the log of the sum without a second pass of exp.
    return p, z.amax(-1), -p.amax(-1).log()


def _kd(z_s: Tensor, z_t: Tensor, T: float | Tensor) -> Tensor:
    return kl_rows(torch.log_softmax(z_t / T, -1), torch.log_softmax(z_s / T, -1))


def _kd_closed(z_s: Tensor, z_t: Tensor, T: float | Tensor) -> tuple[Tensor, Tensor]:
    p, top_t, log_t = softmax_and_log_sum(z_t, T)
    q, top_s, log_s = softmax_and_log_sum(z_s, T)
    gap = torch.linalg.vecdot(p, z_t - z_s)
    gap = gap / (T.squeeze(1) if isinstance(T, Tensor) else T)
    return (gap - (top_t - top_s)) - (log_t - log_s), q.sub_(p).div_(T)


_KD = RowForm(_kd, _kd_closed)


def kd(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Shaped[Tensor, ...] | None = None,
    *,
    T: float | Tensor = 4.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Match the softened class distribution of the teacher: knowledge distillation.

    Source: Hinton, Vinyals and Dean, 2015, section 2.
    ``L = T^2 mean_n sum_c p (log p - log q)``; the gradient is ``T (q - p) / N``.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only used to leave out rows labelled ``ignore_index``.
        T: Temperature > 0, one number or one for each row.
        t_squared: Whether to multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Returns:
        A scalar in nats (times ``T ** 2``), or [N] with ``reduction="none"``.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive.

    Example:
        >>> z_s, z_t = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> kd(z_s, z_t, T=1.0)
        tensor(0.3278)
    """
    T = temperature("kd", T)
    return evaluate("kd", _KD, z_s, z_t, T, target=target, factor=squared(T, t_squared), **options)


def _soft_ce(z_s: Tensor, z_t: Tensor, T: float | Tensor) -> Tensor:
    return cross_entropy_rows(torch.softmax(z_t / T, -1), torch.log_softmax(z_s / T, -1))


def _soft_ce_closed(z_s: Tensor, z_t: Tensor, T: float | Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(z_t / T, -1)
    q, top, log_sum = softmax_and_log_sum(z_s, T)
    mean = torch.linalg.vecdot(p, z_s) / (T.squeeze(1) if isinstance(T, Tensor) else T)
    return (top - mean) + log_sum, q.sub_(p).div_(T)


_SOFT_CE = RowForm(_soft_ce, _soft_ce_closed)


def soft_ce(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Shaped[Tensor, ...] | None = None,
    *,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Cross-entropy to the teacher's soft labels: `kd` without the teacher's entropy.

    Source: Shen and Savvides, MEAL V2, 2020, Eq. (2). ``L = -T^2 mean_n sum_c p log q``.
    The gradient is that of `kd`; the value is larger by the entropy of p.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        T: Temperature > 0, one number or one for each row.
        t_squared: Whether to multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive.
    """
    T = temperature("soft_ce", T)
    return evaluate(
        "soft_ce", _SOFT_CE, z_s, z_t, T, target=target, factor=squared(T, t_squared), **options
    )


def _logit_mse(z_s: Tensor, z_t: Tensor, T: float | Tensor) -> Tensor:
    # A class masked in both models differs by nothing.
    gap = (z_s - z_t).masked_fill((z_s == z_t) & z_s.isinf(), 0)
    return (gap / T).square().mean(-1)


def _logit_mse_closed(z_s: Tensor, z_t: Tensor, T: float | Tensor) -> tuple[Tensor, Tensor]:
    gap = (z_s - z_t).div_(T)
    return torch.linalg.vecdot(gap, gap) / gap.shape[-1], gap.mul_(2 / gap.shape[-1]).div_(T)


_LOGIT_MSE = RowForm(_logit_mse, _logit_mse_closed)


def logit_mse(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Shaped[Tensor, ...] | None = None,
    *,
    T: float | Tensor = 1.0,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Mean squared difference of logits, mean over rows and classes, no ``T ** 2``.

    Source: Ba and Caruana, NeurIPS 2014, Eq. (1). ``L = mean_nc ((z_s - z_t) / T)^2``.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        T: Temperature > 0, one number or one for each row.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive.
    """
    T = temperature("logit_mse", T)
    return evaluate("logit_mse", _LOGIT_MSE, z_s, z_t, T, target=target, **options)
