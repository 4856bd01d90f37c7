"""Power divergences: families that reach from the forward to the reverse KL divergence.

``p`` is the teacher's softened distribution, ``q`` the student's; powers are taken as
``exp(a log p + b log q)``, in which tiny probabilities do not underflow one by one.
"""

from __future__ import annotations

from typing import Unpack

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from potstill.core.criteria.divergence import (
    REVERSE_KL,
    Logits,
    Temperature,
    logs,
    pull_back,
)
from potstill.core.criteria.logit import KD
from potstill.core.criteria.rows import RowForm, RowOptions, evaluate, squared, temperature
from potstill.core.errors import ConfigError

__all__ = ["alpha_beta", "amari", "renyi"]


def _alpha_beta(z_s: Tensor, z_t: Tensor, T: Temperature, a: float, b: float) -> Tensor:
    log_p, log_q = logs(z_s, z_t, T)
    if a == 0 and b == 0:
        terms = (log_p - log_q).square() / 2
    elif b == 0:
        power = a * (log_p - log_q)
        terms = (a * log_p).exp() * (power - 1 + (-power).exp()) / a**2
    elif a == 0:
        power = b * (log_q - log_p)
        terms = (b * log_q).exp() * (power - 1 + (-power).exp()) / b**2
    elif a + b == 0:
        power = a * (log_p - log_q)
        terms = (-power + power.exp() - 1) / a**2
    else:
        mixed, own_p, own_q = ((a * log_p + b * log_q), (a + b) * log_p, (a + b) * log_q)
        terms = own_p.exp() / (b * (a + b)) + own_q.exp() / (a * (a + b)) - mixed.exp() / (a * b)
    return terms.sum(-1)


def _alpha_beta_closed(
    z_s: Tensor, z_t: Tensor, T: Temperature, a: float, b: float
) -> tuple[Tensor, Tensor]:
    log_p, log_q = torch.log_softmax(z_t / T, -1), torch.log_softmax(z_s / T, -1)
    q = log_q.exp()
    mixed = log_p.mul(a).add_(log_q, alpha=b).exp_()
    own_p, own_q = log_p.mul_(a + b).exp_(), log_q.mul_(a + b).exp_()
    value = own_p.sum(-1) / (b * (a + b)) + own_q.sum(-1) / (a * (a + b))
    value -= mixed.sum(-1) / (a * b)
    return value, pull_back(own_q.sub_(mixed).div_(a), q, T)


_ALPHA_BETA = RowForm(_alpha_beta, _alpha_beta_closed)
_ALPHA_BETA_LIMIT = RowForm(_alpha_beta)


def alpha_beta(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Alpha-beta divergence.

    Source: Cichocki, Cruces and Amari, Entropy 13, 2011; for distillation Wang et al.,
    ABKD, ICML 2025. ``L = -1/(ab) sum_c [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)]``, with its
    limits at a = 0, b = 0 and a + b = 0. (1, 0) is the forward and (0, 1) the reverse KL
    divergence, (0, 0) half the squared log-ratio. The defaults are ABKD's for language models.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        alpha: The power of p.
        beta: The power of q.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive.
    """
    T = temperature("alpha_beta", T)
    factor = squared(T, t_squared)
    form = _ALPHA_BETA if alpha and beta and alpha + beta else _ALPHA_BETA_LIMIT
    if (alpha, beta) in ((1, 0), (0, 1)):  # sum p = sum q = 1: the other parts cancel
        form = KD if alpha else REVERSE_KL
        return evaluate("alpha_beta", form, z_s, z_t, T, target=target, factor=factor, **options)
    return evaluate(
        "alpha_beta", form, z_s, z_t, T, alpha, beta, target=target, factor=factor, **options
    )


def _powers(z_s: Tensor, z_t: Tensor, T: Temperature, alpha: float) -> Tensor:
    """``alpha log p + (1 - alpha) log q``, -inf in classes masked in both models."""
    log_p, log_q = torch.log_softmax(z_t / T, -1), torch.log_softmax(z_s / T, -1)
    shared = log_p.isneginf() & log_q.isneginf()
    mixed = alpha * log_p.masked_fill(shared, 0) + (1 - alpha) * log_q.masked_fill(shared, 0)
    return mixed.masked_fill(shared, -torch.inf)


def _renyi(z_s: Tensor, z_t: Tensor, T: Temperature, alpha: float) -> Tensor:
    return _powers(z_s, z_t, T, alpha).logsumexp(-1) / (alpha - 1)


def _renyi_closed(z_s: Tensor, z_t: Tensor, T: Temperature, alpha: float) -> tuple[Tensor, Tensor]:
    log_q = torch.log_softmax(z_s / T, -1)
    mixed = torch.log_softmax(z_t / T, -1).mul_(alpha).add_(log_q, alpha=1 - alpha)
    log_sum = mixed.logsumexp(-1)
    weight = mixed.sub_(log_sum.unsqueeze(1)).exp_()
    return log_sum / (alpha - 1), log_q.exp_().sub_(weight).div_(T)


_RENYI = RowForm(_renyi, _renyi_closed)


def renyi(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    alpha: float = 0.5,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Rényi divergence: ``T^2 mean_n log(sum_c p^a q^(1-a)) / (a - 1)``; a = 1 is forward KL.

    Source: Rényi, 1961; van Erven and Harremoës, 2014.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        alpha: The order, > 0.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T or alpha is not positive.
    """
    T = temperature("renyi", T)
    if not alpha > 0:
        raise ConfigError(f"renyi: alpha must be > 0, got {alpha}")
    factor = squared(T, t_squared)
    if alpha == 1:
        return evaluate("renyi", KD, z_s, z_t, T, target=target, factor=factor, **options)
    return evaluate("renyi", _RENYI, z_s, z_t, T, alpha, target=target, factor=factor, **options)


def _amari(z_s: Tensor, z_t: Tensor, T: Temperature, alpha: float) -> Tensor:
    # expm1 keeps the value exact where p and q are close and the sum is nearly 1.
    return torch.expm1(_powers(z_s, z_t, T, alpha).logsumexp(-1)) / (alpha * (alpha - 1))


def _amari_closed(z_s: Tensor, z_t: Tensor, T: Temperature, alpha: float) -> tuple[Tensor, Tensor]:
    log_q = torch.log_softmax(z_s / T, -1)
    mixed = torch.log_softmax(z_t / T, -1).mul_(alpha).add_(log_q, alpha=1 - alpha)
    value = torch.expm1(mixed.logsumexp(-1)) / (alpha * (alpha - 1))
    return value, pull_back(mixed.exp_().div_(-alpha), log_q.exp_(), T)


_AMARI = RowForm(_amari, _amari_closed)


def amari(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    alpha: float = 0.5,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Amari's alpha divergence: ``T^2 mean_n (sum_c p^a q^(1-a) - 1) / (a (a - 1))``.

    Source: Amari, Differential-Geometrical Methods in Statistics, 1985; Cichocki and Amari,
    Entropy 12, 2010. a = 1 is the forward, a = 0 the reverse KL divergence.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        alpha: The order, any real number.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive.
    """
    T = temperature("amari", T)
    factor = squared(T, t_squared)
    if alpha in (0, 1):
        form = KD if alpha else REVERSE_KL
        return evaluate("amari", form, z_s, z_t, T, target=target, factor=factor, **options)
    return evaluate("amari", _AMARI, z_s, z_t, T, alpha, target=target, factor=factor, **options)
