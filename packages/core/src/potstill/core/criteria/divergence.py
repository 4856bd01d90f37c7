"""Divergences between the softened distributions ``p`` of the teacher and ``q`` of the student.

Each is zero exactly where p = q. The references work on log-probabilities, so that a class without
probability costs nothing instead of a NaN. The forward KL divergence is `kd`.

Closed-form gradients: with ``h_c = d L / d log q_c`` the gradient with respect to the logits is
``(h - q sum_c h) / T``.
"""

from __future__ import annotations

from typing import Unpack

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from potstill.core.criteria.logit import KD, kl_rows
from potstill.core.criteria.rows import RowForm, RowOptions, evaluate, squared, temperature
from potstill.core.errors import ConfigError

__all__ = [
    "acceptance_rate",
    "bdkd",
    "block_efficiency",
    "gjsd",
    "reverse_kl",
    "skew_fkl",
    "skew_rkl",
    "tvd",
]

Temperature = float | Tensor
Logits = Float[Tensor, "*rows classes"]


def logs(z_s: Tensor, z_t: Tensor, T: Temperature) -> tuple[Tensor, Tensor]:
    """``log p, log q``, both 0 in classes masked (-inf) in both models.

    Every term here vanishes where log p = log q, so this is how a class that neither model has
    drops out of value and gradient.
    """
    log_p, log_q = torch.log_softmax(z_t / T, -1), torch.log_softmax(z_s / T, -1)
    shared = log_p.isneginf() & log_q.isneginf()
    return log_p.masked_fill(shared, 0), log_q.masked_fill(shared, 0)


def pull_back(h: Tensor, q: Tensor, T: Temperature) -> Tensor:
    """From the gradient with respect to log q to that with respect to the logits; overwrites h."""
    return h.addcmul_(q, h.sum(-1, keepdim=True), value=-1).div_(T)


def reverse_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum_c q (log q - log p)`` [n]; infinite where p = 0 < q, with a gradient that is not."""
    gap = log_q - log_p
    hopeless = gap == torch.inf
    finite = (log_q.exp() * gap.masked_fill(hopeless | log_q.isneginf(), 0)).sum(-1)
    return finite + torch.where(hopeless.any(-1), torch.inf, 0.0)


def _reverse_kl(z_s: Tensor, z_t: Tensor, T: Temperature) -> Tensor:
    return reverse_rows(*logs(z_s, z_t, T))


def _reverse_kl_closed(z_s: Tensor, z_t: Tensor, T: Temperature) -> tuple[Tensor, Tensor]:
    log_q = torch.log_softmax(z_s / T, -1)
    q = log_q.exp()
    gap = log_q.sub_(torch.log_softmax(z_t / T, -1))
    value = torch.linalg.vecdot(q, gap)
    return value, gap.sub_(value.unsqueeze(1)).mul_(q).div_(T)


REVERSE_KL = RowForm(_reverse_kl, _reverse_kl_closed)


def reverse_kl(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """``T^2 mean_n KL(q || p)``: the student avoids what the teacher finds unlikely.

    Source: Gu et al., MiniLLM, ICLR 2024, here on classes. A class that the teacher masks and
    the student does not makes the value infinite; the gradient is then that of the other classes.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive.
    """
    T = temperature("reverse_kl", T)
    factor = squared(T, t_squared)
    return evaluate("reverse_kl", REVERSE_KL, z_s, z_t, T, target=target, factor=factor, **options)


def _mixture_logs(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """``log(share p + (1 - share) q)``."""
    at = log_p.new_tensor(share)
    return torch.logaddexp(log_p + at.log(), log_q + (-at).log1p())


def _probabilities(z_s: Tensor, z_t: Tensor, T: Temperature) -> tuple[Tensor, Tensor]:
    return torch.softmax(z_t / T, -1), torch.softmax(z_s / T, -1)


def _log_ratio(p: Tensor, m: Tensor) -> Tensor:
    """``log(p / m)`` for ``p <= c m``: where p underflows it is finite, and p times it is 0."""
    tiny = torch.finfo(p.dtype).tiny
    return p.clamp_min(tiny).div_(m.clamp_min(tiny)).log_()


def _gjsd(z_s: Tensor, z_t: Tensor, T: Temperature, beta: float) -> Tensor:
    log_p, log_q = logs(z_s, z_t, T)
    log_m = _mixture_logs(log_p, log_q, beta)
    return beta * kl_rows(log_p, log_m) + (1 - beta) * kl_rows(log_q, log_m)


def _gjsd_closed(z_s: Tensor, z_t: Tensor, T: Temperature, beta: float) -> tuple[Tensor, Tensor]:
    p, q = _probabilities(z_s, z_t, T)
    m = torch.lerp(q, p, beta)
    teacher = torch.linalg.vecdot(p, _log_ratio(p, m))
    ratio = _log_ratio(q, m)
    student = torch.linalg.vecdot(q, ratio)
    gradient = ratio.sub_(student.unsqueeze(1)).mul_(q).mul_(1 - beta).div_(T)
    return beta * teacher + (1 - beta) * student, gradient


_GJSD = RowForm(_gjsd, _gjsd_closed)


def gjsd(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    beta: float = 0.5,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Generalized Jensen-Shannon divergence: ``T^2 mean_n beta KL(p || m) + (1-beta) KL(q || m)``.

    Source: Agarwal et al., On-Policy Distillation of Language Models (GKD), ICLR 2024, Eq. (1),
    with ``m = beta p + (1 - beta) q``. ``beta = 0`` is the forward and 1 the reverse KL
    divergence, by their definition (the formula itself tends to 0 there). 1/2 is symmetric and at
    most log 2 (SSLD's loss). The authors use no ``T ** 2``: ``t_squared=False``.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        beta: Share of the teacher in the mixture, in [0, 1].
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive, or beta not in [0, 1].

    Example:
        >>> z_s, z_t = torch.tensor([[9.0, -9.0]]), torch.tensor([[-9.0, 9.0]])
        >>> gjsd(z_s, z_t)  # log 2: nothing in common
        tensor(0.6931)
    """
    T = temperature("gjsd", T)
    if not 0 <= beta <= 1:
        raise ConfigError(f"gjsd: beta must be in [0, 1], got {beta}")
    factor = squared(T, t_squared)
    if beta == 0:
        return evaluate("gjsd", KD, z_s, z_t, T, target=target, factor=factor, **options)
    if beta == 1:
        return evaluate("gjsd", REVERSE_KL, z_s, z_t, T, target=target, factor=factor, **options)
    return evaluate("gjsd", _GJSD, z_s, z_t, T, beta, target=target, factor=factor, **options)


def _skew_fkl(z_s: Tensor, z_t: Tensor, T: Temperature, lam: float) -> Tensor:
    log_p, log_q = logs(z_s, z_t, T)
    return kl_rows(log_p, _mixture_logs(log_p, log_q, lam))


def _skew_fkl_closed(z_s: Tensor, z_t: Tensor, T: Temperature, lam: float) -> tuple[Tensor, Tensor]:
    p, q = _probabilities(z_s, z_t, T)
    m = torch.lerp(q, p, lam)
    value = torch.linalg.vecdot(p, _log_ratio(p, m))
    h = p.mul_(q).div_(m.clamp_min_(torch.finfo(m.dtype).tiny)).mul_(lam - 1)
    return value, pull_back(h, q, T)


_SKEW_FKL = RowForm(_skew_fkl, _skew_fkl_closed)


def skew_fkl(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    lam: float = 0.1,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Skewed forward KL: ``T^2 mean_n KL(p || lam p + (1 - lam) q)``, at most ``-log lam`` a row.

    Source: Ko et al., DistiLLM, ICML 2024. Some codes leave out the teacher's entropy
    (the value differs, the gradient does not).

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        lam: Share of the teacher in the second argument, in (0, 1).
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive, or lam not in (0, 1).
    """
    T, factor = _skew("skew_fkl", lam, T, t_squared)
    return evaluate(
        "skew_fkl", _SKEW_FKL, z_s, z_t, T, lam, target=target, factor=factor, **options
    )


def _skew_rkl(z_s: Tensor, z_t: Tensor, T: Temperature, lam: float) -> Tensor:
    log_p, log_q = logs(z_s, z_t, T)
    return kl_rows(log_q, _mixture_logs(log_p, log_q, 1 - lam))


def _skew_rkl_closed(z_s: Tensor, z_t: Tensor, T: Temperature, lam: float) -> tuple[Tensor, Tensor]:
    p, q = _probabilities(z_s, z_t, T)
    m = p.lerp_(q, lam)
    ratio = _log_ratio(q, m)
    value = torch.linalg.vecdot(q, ratio)
    # d/dq of q log(q / m) is log(q / m) + 1 - lam q / m; the 1 drops out in the pull-back.
    h = q.div(m.clamp_min_(torch.finfo(m.dtype).tiny)).mul_(-lam).add_(ratio).mul_(q)
    return value, pull_back(h, q, T)


_SKEW_RKL = RowForm(_skew_rkl, _skew_rkl_closed)


def skew_rkl(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    lam: float = 0.1,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Skewed reverse KL: ``T^2 mean_n KL(q || (1 - lam) p + lam q)``, at most ``-log lam`` a row.

    Source: Ko et al., DistiLLM, ICML 2024; gradient flows through both q. Arguments as in
    `skew_fkl`, with ``lam`` the share of the student.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive, or lam not in (0, 1).
    """
    T, factor = _skew("skew_rkl", lam, T, t_squared)
    return evaluate(
        "skew_rkl", _SKEW_RKL, z_s, z_t, T, lam, target=target, factor=factor, **options
    )


def _skew(
    name: str, lam: float, T: Temperature, t_squared: bool
) -> tuple[Temperature, Temperature]:
    if not 0 < lam < 1:
        raise ConfigError(f"{name}: lam must be in (0, 1), got {lam}")
    T = temperature(name, T)
    return T, squared(T, t_squared)


def _tvd(z_s: Tensor, z_t: Tensor, T: Temperature) -> Tensor:
    p, q = _probabilities(z_s, z_t, T)
    return 0.5 * (p - q).abs().sum(-1)


def _tvd_closed(z_s: Tensor, z_t: Tensor, T: Temperature) -> tuple[Tensor, Tensor]:
    p, q = _probabilities(z_s, z_t, T)
    gap = p.sub_(q).neg_()
    value = 0.5 * torch.linalg.vector_norm(gap, 1, -1)
    return value, pull_back(gap.sign_().mul_(0.5).mul_(q), q, T)


_TVD = RowForm(_tvd, _tvd_closed)


def tvd(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Total variation: ``T^2 mean_n sum_c |p - q| / 2``.

    Source: Wen et al., f-Divergence Minimization for Sequence-Level Distillation, ACL 2023.
    ``1 - tvd`` is the acceptance rate of speculative decoding (`acceptance_rate`).

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive.
    """
    T = temperature("tvd", T)
    factor = squared(T, t_squared)
    return evaluate("tvd", _TVD, z_s, z_t, T, target=target, factor=factor, **options)


def acceptance_rate(z_s: Logits, z_t: Logits, *, T: float | Tensor = 1.0) -> Float[Tensor, "*rows"]:
    """Share of drafts that speculative decoding would accept: ``sum_c min(p, q)`` a row.

    Source: Leviathan, Kalman and Matias, ICML 2023, Theorem 3.5. A metric, without gradient.

    Args:
        z_s: Logits of the draft model, [..., C].
        z_t: Logits of the target model, same shape.
        T: Temperature > 0.
    """
    with torch.no_grad():
        return 1 - tvd(z_s, z_t, T=T, t_squared=False, reduction="none").view(z_s.shape[:-1])


def block_efficiency(rate: Float[Tensor, "*shape"], drafts: int) -> Float[Tensor, "*shape"]:
    """Expected tokens a call of the target model yields: ``(1 - a^(g+1)) / (1 - a)``.

    Source: Leviathan, Kalman and Matias, ICML 2023, Eq. (1).

    Args:
        rate: Acceptance rates a in [0, 1].
        drafts: Number g of tokens drafted for each call.

    Example:
        >>> block_efficiency(torch.tensor([0.5, 1.0]), drafts=2)
        tensor([1.7500, 3.0000])
    """
    powers = torch.arange(drafts + 1, device=rate.device, dtype=rate.dtype)
    return (rate.unsqueeze(-1) ** powers).sum(-1)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0)).sum(-1)


def _gates(h_t: Tensor, h_s: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """Weights of the forward and the reverse part; entropies equal but for rounding are equal."""
    noise = 16 * torch.finfo(h_t.dtype).eps * (h_t + h_s)
    return torch.where(h_t - h_s > noise, delta, 1.0), torch.where(h_s - h_t > noise, delta, 1.0)


def _bdkd(z_s: Tensor, z_t: Tensor, T: Temperature, delta: float) -> Tensor:
    log_p, log_q = torch.log_softmax(z_t / T, -1), torch.log_softmax(z_s / T, -1)
    forward, reverse = _gates(_entropy(log_p.detach()), _entropy(log_q.detach()), delta)
    log_p, log_q = logs(z_s, z_t, T)
    return forward * kl_rows(log_p, log_q) + reverse * reverse_rows(log_p, log_q)


def _bdkd_closed(z_s: Tensor, z_t: Tensor, T: Temperature, delta: float) -> tuple[Tensor, Tensor]:
    log_p, log_q = torch.log_softmax(z_t / T, -1), torch.log_softmax(z_s / T, -1)
    p, q = log_p.exp(), log_q.exp()
    h_t, h_s = -torch.linalg.vecdot(p, log_p), -torch.linalg.vecdot(q, log_q)
    forward, reverse = _gates(h_t, h_s, delta)
    gap = log_q.sub_(log_p)
    fkl, rkl = -torch.linalg.vecdot(p, gap), torch.linalg.vecdot(q, gap)
    # forward (q - p) + reverse q (gap - rkl)
    by_q = gap.sub_(rkl.unsqueeze(1)).mul_(reverse.unsqueeze(1)).add_(forward.unsqueeze(1))
    gradient = by_q.mul_(q).sub_(p.mul_(forward.unsqueeze(1))).div_(T)
    return forward * fkl + reverse * rkl, gradient


_BDKD = RowForm(_bdkd, _bdkd_closed)


def bdkd(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    delta: float = 2.0,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Balanced divergence: forward and reverse KL, gated by which model is less certain.

    Source: after Amara et al., BD-KD, 2022 (arXiv 2212.12965).
    ``L = T^2 mean_n [w_f KL(p || q) + w_r KL(q || p)]``, ``w_f = delta`` where the teacher's
    entropy is the larger, ``w_r = delta`` where the student's is, 1 otherwise, without gradient.
    The paper's delta and T were not available to us: the defaults are ours. A third-party code
    (ABKD) has cross-entropy for the forward part: same gradient, larger value.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape; with ``teacher_grad=True`` in online training.
        target: Labels [...]; only a mask.
        delta: Weight > 0 of the part that the entropies ask for; 1 gives Jeffreys' divergence.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T or delta is not positive.
    """
    T = temperature("bdkd", T)
    if not delta > 0:
        raise ConfigError(f"bdkd: delta must be > 0, got {delta}")
    factor = squared(T, t_squared)
    return evaluate("bdkd", _BDKD, z_s, z_t, T, delta, target=target, factor=factor, **options)
