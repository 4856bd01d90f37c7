"""Criteria on features: vectors, tokens and maps compared entry by entry.

All take ``(f_s, f_t)`` of one shape; widths and sizes that differ are mapped by a projector first
(`Projected`). ``mask`` selects items by the leading axes: [N] rows, [B L] tokens, or every entry.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from potstill.core.criteria.pairs import masked_mean, pair

__all__ = ["cosine", "hint", "l1", "mse", "smooth_l1"]


def mse(
    f_s: Float[Tensor, "*shape"],
    f_t: Float[Tensor, "*shape"],
    mask: Shaped[Tensor, ...] | None = None,
    *,
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Mean squared difference over all entries that the mask leaves.

    Source: standard. ``L = mean (f_s - f_t)^2``.

    Args:
        f_s: Features of the student, any shape.
        f_t: Features of the teacher, same shape.
        mask: Which items count; its shape is a prefix of theirs.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Shapes that do not fit.

    Example:
        >>> import torch
        >>> mse(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([True, False]))
        tensor(1.)
    """
    f_s, f_t = pair("mse", f_s, f_t, teacher_grad=teacher_grad)
    return masked_mean("mse", (f_s - f_t).square(), mask)


def l1(
    f_s: Float[Tensor, "*shape"],
    f_t: Float[Tensor, "*shape"],
    mask: Shaped[Tensor, ...] | None = None,
    *,
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Mean absolute difference over all entries that the mask leaves.

    Source: standard. ``L = mean |f_s - f_t|``. Arguments as in `mse`.
    """
    f_s, f_t = pair("l1", f_s, f_t, teacher_grad=teacher_grad)
    return masked_mean("l1", (f_s - f_t).abs(), mask)


def smooth_l1(
    f_s: Float[Tensor, "*shape"],
    f_t: Float[Tensor, "*shape"],
    mask: Shaped[Tensor, ...] | None = None,
    *,
    beta: float = 1.0,
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Huber's compromise: squared below ``beta``, absolute above.

    Source: Huber, 1964; with beta = 1 Girshick, Fast R-CNN, ICCV 2015, Eq. (3). With
    ``d = |f_s - f_t|``: ``L = mean (d^2 / (2 beta) if d < beta else d - beta / 2)``. Arguments as
    in `mse`.
    """
    f_s, f_t = pair("smooth_l1", f_s, f_t, teacher_grad=teacher_grad)
    return masked_mean("smooth_l1", F.smooth_l1_loss(f_s, f_t, beta=beta, reduction="none"), mask)


def hint(
    f_s: Float[Tensor, "*shape"],
    f_t: Float[Tensor, "*shape"],
    mask: Shaped[Tensor, ...] | None = None,
    *,
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Regress a hidden layer of the teacher: `mse`, behind a projector where widths differ.

    Source: Romero et al., FitNets, ICLR 2015, Eq. (3), as a mean over entries (the paper: half
    the sum). ``L = mean (P(f_s) - f_t)^2``. Arguments as in `mse`.

    Example:
        >>> import torch
        >>> from potstill.core.criteria import Projected
        >>> criterion = Projected(torch.nn.Linear(8, 16), hint)
        >>> criterion(torch.zeros(4, 8), torch.zeros(4, 16)).shape
        torch.Size([])
    """
    f_s, f_t = pair("hint", f_s, f_t, teacher_grad=teacher_grad)
    return masked_mean("hint", (f_s - f_t).square(), mask)


def cosine(
    f_s: Float[Tensor, "*shape"],
    f_t: Float[Tensor, "*shape"],
    mask: Shaped[Tensor, ...] | None = None,
    *,
    dim: int = -1,
    eps: float = 1e-8,
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Mean of ``1 - cos(f_s, f_t)`` over all vectors along ``dim`` that the mask leaves.

    Source: Sun et al., Patient KD, EMNLP 2019, whose squared distance of normalized vectors is
    twice this. ``L = mean (1 - <f_s, f_t> / (|f_s| |f_t|))``. A vector shorter than
    ``eps`` counts as that long, so that zero vectors have cosine 0 and a finite gradient.

    Args:
        f_s: Features of the student.
        f_t: Features of the teacher, same shape.
        mask: Which vectors count; its shape is a prefix of theirs without ``dim``.
        dim: The axis of the vectors: -1 for tokens, 1 for maps.
        eps: Least norm.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Shapes that do not fit.
    """
    f_s, f_t = pair("cosine", f_s, f_t, teacher_grad=teacher_grad)
    return masked_mean("cosine", 1 - F.cosine_similarity(f_s, f_t, dim=dim, eps=eps), mask)
