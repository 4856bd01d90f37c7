"""Contrastive criteria: each item's teacher against the other items."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from potstill.core.criteria.pairs import pair
from potstill.core.criteria.rows import positive
from potstill.core.errors import ShapeError

__all__ = ["crd_nce", "info_nce"]


def info_nce(
    f_s: Float[Tensor, "batch features"],
    f_t: Float[Tensor, "batch features"],
    *,
    T: float = 0.07,
    symmetric: bool = False,
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Find an item's teacher among the teachers of the batch.

    Source: van den Oord et al., 2018, Eq. (4), between student and teacher (the in-batch form of
    Tian et al., Contrastive Representation Distillation, ICLR 2020, which needs memory banks).
    ``L = -mean_i log softmax_j(cos(s_i, t_j) / T)_i``.

    Args:
        f_s: Features of the student, [N D], projected to the teacher's width.
        f_t: Features of the teacher, [N D].
        T: Temperature > 0.
        symmetric: Average with the search for the student among the students.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Shapes that differ, or fewer than 2 items.
        ConfigError: T is not positive.
    """
    positive("info_nce", "T", T)
    f_s, f_t = pair("info_nce", f_s, f_t, ndim=2, rows=2, teacher_grad=teacher_grad)
    similarity = F.normalize(f_s) @ F.normalize(f_t).mT / T
    own = torch.arange(len(f_s), device=f_s.device)
    loss = F.cross_entropy(similarity, own)
    return (loss + F.cross_entropy(similarity.mT, own)) / 2 if symmetric else loss


def crd_nce(
    scores: Float[Tensor, "batch one_and_negatives"], num_data: int, *, eps: float = 1e-7
) -> Float[Tensor, ""]:
    """The noise-contrastive part of CRD, for callers with their own memory banks.

    Source: Tian et al., ICLR 2020; eps as in the authors' code. With
    ``c = K / num_data + eps``, ``L = -mean_n [log s_0 / (s_0 + c) + sum_k log (K / num_data) /
    (s_k + c)]``.

    Args:
        scores: ``exp(cos / T) / Z`` >= 0, the positive in column 0, K negatives after it.
        num_data: Number of items that negatives are drawn from.
        eps: As above.

    Raises:
        ShapeError: Not [N 1+K].
        ConfigError: num_data is not positive.
    """
    positive("crd_nce", "num_data", num_data)
    if scores.ndim != 2 or scores.shape[1] < 2 or not len(scores):
        raise ShapeError(f"crd_nce: scores must be [N 1+K], got {list(scores.shape)}")
    noise = (scores.shape[1] - 1) / num_data
    right, wrong = scores[:, 0], scores[:, 1:]
    # A positive that scores 0 is as wrong as can be, not infinitely wrong.
    right = right.clamp_min(torch.finfo(scores.dtype).tiny)
    hit = right.log() - (right + noise + eps).log()
    miss = noise / (wrong + noise + eps)
    return -(hit.sum() + miss.log().sum()) / len(scores)
