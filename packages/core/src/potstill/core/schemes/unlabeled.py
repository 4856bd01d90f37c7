"""Distillation without labels, on a pool that the teacher has chosen from."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from potstill.core.errors import ConfigError, ShapeError
from potstill.core.schemes.offline import LogitDistiller
from potstill.core.vocabulary.objective import Losses

__all__ = ["UnlabeledDistiller", "near_duplicates", "select_by_teacher"]


class UnlabeledDistiller(LogitDistiller):
    """Batches of inputs without labels; every term gets ``(z_s, z_t)``.

    Source: after Cui et al., Beyond Self-Supervision (SSLD), 2021, which uses the Jensen-Shannon
    divergence, `gjsd`, at temperature 1 and fine-tunes on labels afterwards (a second `Stage`).
    """

    def forward(self, batch: Any, step: int) -> Losses:
        """Route a batch ``x``, or a tuple whose first item is that."""
        x = batch[0] if isinstance(batch, tuple | list) else batch
        names = self.objective.at(step)
        z_s, z_t = self.student(x), self.reference(x, step)
        return self.objective(step, {name: (z_s, z_t) for name in names})


def select_by_teacher(
    teacher: Float[Tensor, "pool classes"],
    *,
    per_class: int,
    min_confidence: float = 0.0,
    student: Float[Tensor, "pool classes"] | None = None,
    share: float = 0.5,
) -> Int[Tensor, selected]:
    """Choose a pool by class: the items that are most surely of it.

    Source: after SSLD, and after KD3 (webly collected images), which scores by teacher and student
    together; counts and thresholds are yours, since the papers' were not available to us.

    Args:
        teacher: Logits of the teacher on the pool.
        per_class: Largest number of items of each predicted class.
        min_confidence: Least probability.
        student: Logits of a student, for a combined score.
        share: Share of the teacher in the combined probability.

    Returns:
        Indices into the pool, by class and then by falling confidence.

    Raises:
        ConfigError: An option out of range.
        ShapeError: Logits that differ in shape.
    """
    if per_class < 1 or not 0 <= min_confidence <= 1 or not 0 <= share <= 1:
        raise ConfigError(
            "select_by_teacher: per_class >= 1, 0 <= min_confidence <= 1 and 0 <= share <= 1 are "
            f"needed, got {(per_class, min_confidence, share)}"
        )
    p = torch.softmax(teacher, -1)
    if student is not None:
        if student.shape != teacher.shape:
            raise ShapeError(
                f"select_by_teacher: student must be {list(teacher.shape)} like teacher, got "
                f"{list(student.shape)}"
            )
        p = share * p + (1 - share) * torch.softmax(student, -1)
    confidence, label = p.max(-1)
    order = confidence.argsort(descending=True, stable=True)
    order = order[confidence[order] >= min_confidence]
    order = order[label[order].argsort(stable=True)]  # by class, sure ones first
    own = label[order]
    first = torch.searchsorted(own, own)  # where the class begins
    return order[torch.arange(len(own), device=own.device) - first < per_class]


def near_duplicates(
    features: Float[Tensor, "pool features"],
    reference: Float[Tensor, "reference features"] | None = None,
    *,
    threshold: float = 0.95,
    block: int = 4096,
) -> Bool[Tensor, pool]:
    """Which items of a pool nearly repeat a reference item, or an earlier item of the pool.

    Use it to keep validation images out of a pool: a pool that holds them makes any figure
    measured on them worthless.

    Args:
        features: Features of the pool, from any model (compared by cosine).
        reference: Items to keep out; None compares the pool with itself, and the first of
            several alike stays.
        threshold: Cosine from which two items are the same.
        block: Items compared at a time.

    Returns:
        True where an item should be removed.

    Raises:
        ConfigError: A threshold not in (-1, 1].
    """
    if not -1 < threshold <= 1:
        raise ConfigError(f"near_duplicates: threshold must be in (-1, 1], got {threshold}")
    pool = F.normalize(features.float(), dim=1)
    others = pool if reference is None else F.normalize(reference.float(), dim=1)
    found = torch.zeros(len(pool), dtype=torch.bool, device=pool.device)
    for start in range(0, len(pool), block):
        similar = pool[start : start + block] @ others.mT >= threshold - 1e-6
        if reference is None:
            similar = similar.tril(start - 1)  # only with earlier items
        found[start : start + block] = similar.any(1)
    return found
