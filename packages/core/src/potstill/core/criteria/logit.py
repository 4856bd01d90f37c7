"""Criteria on logits: the softened distributions of a teacher, and the logits themselves.

All take ``(z_s, z_t, target=None)`` and the keywords of `RowOptions`; ``target`` serves as a mask
here (rows labelled ``ignore_index`` do not count) unless the criterion says otherwise.
Temperature: ``p = softmax(z_t / T)``, ``q = softmax(z_s / T)``; what matches softened
distributions is multiplied by ``T ** 2``, so that the size of the gradient does not depend on T.
"""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
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

__all__ = ["kd", "logit_mse", "logit_std", "mft", "row_std", "soft_ce", "wsld"]


def kl_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum_c p (log p - log q)`` [n], where a class without mass in p contributes nothing."""
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(-1)


def cross_entropy_rows(p: Tensor, log_q: Tensor) -> Tensor:
    """``-sum_c p log q`` [n], where a class without mass in p contributes nothing."""
    return -(p * log_q.masked_fill(p == 0, 0)).sum(-1)


def softened(z: Tensor, T: float | Tensor) -> Tensor:
    """``z / T``, without a pass over memory at T = 1."""
    return z if isinstance(T, float) and T == 1 else z / T


def softmax_and_log_sum(z: Tensor, T: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``softmax(z / T)``, the maximum of ``z / T`` and the log of the sum of exp above it."""
    z = softened(z, T)
    p = torch.softmax(z, -1)
    # The largest probability is exp(0) / sum: the log of the sum without a second pass of exp.
    return p, z.amax(-1), -p.amax(-1).log()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _kd(z_s: Tensor, z_t: Tensor, T: float | Tensor) -> Tensor:
    return kl_rows(torch.log_softmax(z_t / T, -1), torch.log_softmax(z_s / T, -1))


def _kd_closed(z_s: Tensor, z_t: Tensor, T: float | Tensor) -> tuple[Tensor, Tensor]:
    if z_s.is_cuda and z_s.dtype == torch.float32 and _has_triton():
        from potstill.core.criteria.triton_kd import kd_rows

        return kd_rows(z_s.contiguous(), z_t.contiguous(), T)
    x_s, x_t = z_s / T, z_t / T
    q, p = torch.softmax(x_s, -1), torch.softmax(x_t, -1)
    # log-sum-exp = maximum - log(largest probability); the maxima are subtracted from each other
    # before anything else, so that an offset of all logits costs no digits.
    tops = x_t.amax(-1) - x_s.amax(-1)
    sums = (p.amax(-1) / q.amax(-1)).log()
    gap = torch.linalg.vecdot(p, x_t.sub_(x_s))
    return (gap - tops) + sums, q.sub_(p).div_(T)


KD = RowForm(_kd, _kd_closed)


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
        t_squared: Multiply by ``T ** 2``.
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
    return evaluate("kd", KD, z_s, z_t, T, target=target, factor=squared(T, t_squared), **options)


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

    Source: Shen and Savvides, MEAL V2, 2020. ``L = -T^2 mean_n sum_c p log q``.
    The gradient is that of `kd`; the value is larger by the entropy of p.

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
    T = temperature("soft_ce", T)
    return evaluate(
        "soft_ce", _SOFT_CE, z_s, z_t, T, target=target, factor=squared(T, t_squared), **options
    )


def _half_square(z_s: Tensor, z_t: Tensor) -> Tensor:
    # A class masked in both models differs by nothing.
    gap = (z_s - z_t).masked_fill((z_s == z_t) & z_s.isinf(), 0)
    return gap.square().sum(-1) / 2


def _half_square_closed(z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    gap = z_s - z_t
    return torch.linalg.vector_norm(gap, dim=-1).square() / 2, gap


# One temporary, where `kd` has four.
_HALF_SQUARE = RowForm(_half_square, _half_square_closed, cost=0.25)


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
    factor = 2 / (z_s.shape[options.get("dim", -1)] * squared(T, True))
    return evaluate("logit_mse", _HALF_SQUARE, z_s, z_t, target=target, factor=factor, **options)


def row_std(z: Float[Tensor, "*rows classes"], *, floor: float = 1e-2) -> Float[Tensor, "*rows"]:
    """Standard deviation of each row of logits: a temperature for each sample.

    Source: after Choi et al., Understanding the Role of Mixup in Knowledge Distillation, WACV 2023
    (unbiased, gradient flows through it). ``floor`` is the least value: rows of nearly equal
    logits would have temperatures, hence gradients, without bound.

    Example:
        >>> row_std(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
        tensor([1.4142, 0.0100])
    """
    finite = z.isfinite()
    count = finite.sum(-1, keepdim=True).clamp_min(2)
    z = z.masked_fill(~finite, 0)
    gap = (z - z.sum(-1, keepdim=True) / count).masked_fill(~finite, 0)
    variance = gap.square().sum(-1) / (count.squeeze(-1) - 1)
    return variance.clamp_min(floor**2).sqrt()


def _standardized(z: Tensor, eps: float, floor: float) -> Tensor:
    # softmax does not see a shift: dividing by the deviation is all of the z-score that matters.
    masked = z.isneginf()
    by = row_std(z, floor=floor).unsqueeze(-1) + eps
    return (z.masked_fill(masked, 0) / by).masked_fill(masked, -torch.inf)


def _logit_std(z_s: Tensor, z_t: Tensor, T: float | Tensor, eps: float, floor: float) -> Tensor:
    return _kd(_standardized(z_s, eps, floor), _standardized(z_t, eps, floor), T)


def _logit_std_closed(
    z_s: Tensor, z_t: Tensor, T: float | Tensor, eps: float, floor: float
) -> tuple[Tensor, Tensor]:
    classes = z_s.shape[-1]
    statistics = partial(torch.std_mean, dim=-1, correction=int(classes > 1), keepdim=True)
    (std_s, mean), (std_t, _) = statistics(z_s), statistics(z_t)
    by_s, by_t = std_s.clamp_min(floor) + eps, std_t.clamp_min(floor) + eps
    value, gradient = _kd_closed(z_s / by_s, z_t / by_t, T)
    # Each logit also moves the deviation that all of its row are divided by, unless it is floored.
    pull = torch.linalg.vecdot(gradient, z_s).unsqueeze(1) / (by_s**2 * std_s * max(classes - 1, 1))
    gradient.div_(by_s)
    return value, gradient.addcmul_(z_s - mean, pull.masked_fill_(std_s <= floor, 0), value=-1)


_LOGIT_STD = RowForm(_logit_std, _logit_std_closed)


def logit_std(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Shaped[Tensor, ...] | None = None,
    *,
    T: float | Tensor = 2.0,
    t_squared: bool = True,
    eps: float = 1e-7,
    floor: float = 1e-2,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """`kd` on standardized logits, ``z / (std(z) + eps)`` row by row.

    Source: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024. With
    ``u = z / (std(z) + eps)``: ``L = T^2 mean_n KL(softmax(u_t / T) || softmax(u_s / T))``. Their
    recipe weighs it 9 against 0.1 of cross-entropy. With ``T=1, t_squared=False, eps=0`` it is the
    per-sample temperature of Choi et al., WACV 2023 (mixup distillation).

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        T: Temperature > 0 of the standardized logits.
        t_squared: Multiply by ``T ** 2``.
        eps: Added to the deviation, as in the authors' code.
        floor: Least deviation, in units of the logits. It bounds the gradient where logits are
            nearly equal; authors' code reaches 1e6 there.
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: T is not positive.
    """
    T = temperature("logit_std", T)
    return evaluate(
        "logit_std",
        _LOGIT_STD,
        z_s,
        z_t,
        T,
        eps,
        floor,
        target=target,
        factor=squared(T, t_squared),
        **options,
    )


def _lag(z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
    """``1 - exp(-CE_s / CE_t)``, without gradient."""
    label = labels.unsqueeze(1)
    hard_s, hard_t = (z.logsumexp(-1) - z.gather(1, label).squeeze(1) for z in (z_s.detach(), z_t))
    # The authors' eps also says that a student as perfect as its teacher, 0 / 0, has weight 0.
    return -torch.expm1(-hard_s / (hard_t + 1e-7))


def _wsld(z_s: Tensor, z_t: Tensor, labels: Tensor, T: float | Tensor) -> Tensor:
    return _lag(z_s, z_t, labels) * _soft_ce(z_s, z_t, T)


def _wsld_closed(
    z_s: Tensor, z_t: Tensor, labels: Tensor, T: float | Tensor
) -> tuple[Tensor, Tensor]:
    value, gradient = _soft_ce_closed(z_s, z_t, T)
    lag = _lag(z_s, z_t, labels)
    return lag * value, gradient.mul_(lag.unsqueeze(1))


_WSLD = RowForm(_wsld, _wsld_closed, labelled=True)


def wsld(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Shaped[Tensor, ...],
    *,
    T: float | Tensor = 4.0,
    t_squared: bool = True,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Soft labels weighed by how much the student still lags behind the teacher.

    Source: Zhou et al., Rethinking Soft Labels: a Bias-Variance Tradeoff Perspective, ICLR 2021.
    ``L = T^2 mean_n w_n (-sum_c p log q)``, ``w = 1 - exp(-CE(z_s, y) / CE(z_t, y))`` without
    gradient. The authors' code weighs it 2.25 beside the cross-entropy.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...] int64.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        **options: See `RowOptions`.

    Raises:
        ShapeError: Shapes that differ, or a label out of range.
        ConfigError: T is not positive, or the target is not labels.
    """
    T = temperature("wsld", T)
    return evaluate(
        "wsld", _WSLD, z_s, z_t, T, target=target, factor=squared(T, t_squared), **options
    )


def _mft(z_s: Tensor, z_t: Tensor, labels: Tensor, T: float | Tensor, threshold: float) -> Tensor:
    p = torch.softmax(z_t / T, -1)
    label = labels.unsqueeze(1)
    p_y, (p_top, top) = p.gather(1, label), p.max(-1, keepdim=True)
    gap = p_top - p_y
    wrong = (gap + threshold) / (1 + gap + 1e-7)
    right = ((p_y + threshold).clamp_max(1) - p_top) / (1 - p_top + 1e-7)
    mix = torch.where(top != label, wrong, right)
    p = (p * (1 - mix)).scatter_add(1, label, mix)
    log_p = p.log().masked_fill(p == 0, 0)
    return (p * log_p).sum(-1) + cross_entropy_rows(p, torch.log_softmax(z_s / T, -1))


_MFT = RowForm(_mft, labelled=True)


def mft(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Shaped[Tensor, ...],
    *,
    T: float | Tensor = 1.0,
    t_squared: bool = True,
    threshold: float = 0.2,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """`kd` to a teacher corrected so that the label leads every other class by ``threshold``.

    Source: Belcak et al., Minifinetuning, 2025 (arXiv 2506.15702), as in NVIDIA's Model Optimizer.
    ``L = T^2 mean_n KL((1 - m) p + m onehot(y) || q)``; m is the least mixture that gives the lead.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...] int64.
        T: Temperature > 0, one number or one for each row.
        t_squared: Multiply by ``T ** 2``.
        threshold: The lead, in [0, 1].
        **options: See `RowOptions`.

    Raises:
        ShapeError: Shapes that differ, or a label out of range.
        ConfigError: T is not positive, or the target is not labels.
    """
    T = temperature("mft", T)
    return evaluate(
        "mft",
        _MFT,
        z_s,
        z_t,
        T,
        threshold,
        target=target,
        factor=squared(T, t_squared),
        **options,
    )
