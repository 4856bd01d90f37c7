"""Several sources, weighted by how much their task is like the target's.

After Borup, Phoo and Hariharan, Distilling from Similar Tasks for Transfer Learning on a Budget
(DistillNearest, DistillWeighted), ICCV 2023. Powers, weights and the default similarity are ours,
since the paper's could not be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.core.criteria import cka_similarity, kd
from potstill.core.errors import ConfigError, ObjectiveError, nearest
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Criterion, Losses, Objective
from potstill.core.vocabulary.teacher import Frozen

__all__ = ["MultiSourceDistiller", "multi_source", "similarity_weights", "task_similarity"]


def _upper(matrix: Tensor) -> Tensor:
    row, column = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    return matrix[row, column]


def _ranks(x: Tensor) -> Tensor:
    """Ranks, with the mean rank for ties."""
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts - 1) / 2)[inverse].to(x.dtype if len(values) else torch.float32)


def task_similarity(
    features: Float[Tensor, "probe features"],
    labels: Int[Tensor, probe],
    kind: Literal["cka", "rsa", "parc"] = "cka",
) -> float:
    """How well a source's features explain the target's labels, on a small labelled probe.

    Sources: ``cka``, Kornblith et al., ICML 2019 (linear, features against one-hot labels);
    ``parc``, Bolya, Mittapalli and Hoffman, NeurIPS 2021: Spearman correlation of the pairwise
    correlation distances of features and labels; ``rsa``, Dwivedi and Roig, CVPR 2019: the same
    with Pearson's.

    Args:
        features: The source's, [n D], n at least 3.
        labels: The target's, int64, at least two classes among them.
        kind: Which similarity.

    Returns:
        A number at most 1; larger is more alike.

    Raises:
        ConfigError: An unknown kind.
    """
    hot = F.one_hot(labels).to(features.dtype)
    if kind == "cka":
        return float(cka_similarity(features, hot))
    if kind not in ("rsa", "parc"):
        raise ConfigError(f"task_similarity: kind must be cka, rsa or parc, got {kind!r}")

    def distances(x: Tensor) -> Tensor:
        x = F.normalize(x - x.mean(1, keepdim=True), dim=1)
        return 1 - _upper(x @ x.mT)

    a, b = distances(features), distances(hot)
    if kind == "parc":
        a, b = _ranks(a), _ranks(b)
    return float(F.cosine_similarity(a - a.mean(), b - b.mean(), dim=0))


def similarity_weights(similarity: Mapping[str, float], *, power: float = 1.0) -> dict[str, float]:
    """Weights of sources: similarities to a power, normalized to sum 1.

    An infinite power gives all to the nearest (DistillNearest). Negative similarities count as 0;
    if none is positive, all are alike.

    Args:
        similarity: By the name of the source.
        power: At least 0; 0 weighs all alike.

    Raises:
        ConfigError: No source, or a negative power.

    Example:
        >>> similarity_weights({"birds": 0.8, "cars": 0.2})
        {'birds': 0.8, 'cars': 0.2}
    """
    if not similarity or not power >= 0:
        raise ConfigError(
            f"similarity_weights: sources and a power >= 0 are needed, got {dict(similarity)}, "
            f"{power}"
        )
    top = max(similarity.values())
    if top <= 0:
        return dict.fromkeys(similarity, 1 / len(similarity))
    if power == float("inf"):
        best = max(similarity, key=lambda name: similarity[name])
        return {name: float(name == best) for name in similarity}
    # Relative to the largest: a high power must not underflow all of them.
    raw = {name: (max(value, 0.0) / top) ** power for name, value in similarity.items()}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


class MultiSourceDistiller(Distiller):
    """A student with a head for the target and one for each source; build it with `multi_source`.

    The student returns ``{"task": logits, <source>: logits in that source's classes}``. A batch is
    ``(x, y, pool)``: labelled inputs, and unlabelled ones on which the sources teach.
    """

    def __init__(
        self, student: nn.Module, objective: Objective, sources: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(student, objective)
        self.sources = nn.ModuleDict({name: Frozen(model) for name, model in sources.items()})

    def forward(self, batch: Any, step: int) -> Losses:
        """Route a batch ``(x, y, pool)``; sources without weight do not run."""
        x, y, pool = batch
        names = self.objective.at(step)
        tensors: dict[str, tuple[Tensor, ...]] = {}
        if "task" in names:
            tensors["task"] = (self.student(x)["task"], y)
        sources = [name for name in names if name != "task"]
        outputs = self.student(pool) if sources else {}
        for name in sources:
            if name not in outputs:
                raise ObjectiveError(
                    f"MultiSourceDistiller: the student must have a head {name!r}; "
                    f"{nearest(name, outputs)}"
                )
            tensors[name] = (outputs[name], self.sources[name](pool))
        return self.objective(step, tensors)


def multi_source(
    student: nn.Module,
    sources: Mapping[str, nn.Module],
    weights: Mapping[str, float],
    *,
    lam: float = 0.8,
    task: Criterion = F.cross_entropy,
    criterion: Criterion = kd,
) -> MultiSourceDistiller:
    """``(1 - lam) task + lam sum_s w_s criterion_s``; no data of the sources is needed.

    Args:
        student: With heads as `MultiSourceDistiller` says.
        sources: Teachers by name.
        weights: By name, from `similarity_weights`; sources without weight never run.
        lam: Share of the sources, in [0, 1].
        task: Criterion on the target's labels.
        criterion: Criterion between a head and its source.

    Raises:
        ConfigError: Weights of unknown sources, or lam out of range.
    """
    for name in weights:
        if name not in sources or name == "task":
            raise ConfigError(f"multi_source: unknown source {name!r}; {nearest(name, sources)}")
    if not 0 <= lam <= 1:
        raise ConfigError(f"multi_source: lam must be in [0, 1], got {lam}")
    terms: dict[str, tuple[float, Criterion]] = {"task": (1 - lam, task)}
    terms |= {name: (lam * weight, criterion) for name, weight in weights.items() if weight}
    used = {name: sources[name] for name in terms if name != "task"}
    return MultiSourceDistiller(student, Objective(terms), used)
