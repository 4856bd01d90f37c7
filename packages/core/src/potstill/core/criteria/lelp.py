"""LELP: pseudo-subclasses along the directions in which a class of the teacher varies.

After Loo et al., Linear Projections of Teacher Embeddings for Few-Class Distillation, 2024. The
paper's text was not available to us; assumptions of ours are marked.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.core.errors import ConfigError, ShapeError

__all__ = ["LelpHead", "Subclasses", "lelp_subclasses", "lelp_targets", "null_space_projector"]


class Subclasses(NamedTuple):
    """Directions of each class, in the space of the teacher's embeddings.

    Attributes:
        mean: [K D], of each class's embeddings.
        axes: [K d D], orthonormal, by falling variance.
        variance: [K d], along the axes.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor


def null_space_projector(
    weight: Float[Tensor, "classes features"],
) -> Float[Tensor, "features features"]:
    """Projector on what the classifier ``weight`` does not see: ``I - W^+ W``."""
    return torch.eye(weight.shape[1]).to(weight) - torch.linalg.pinv(weight) @ weight


def lelp_subclasses(
    embeddings: Float[Tensor, "items features"],
    labels: Int[Tensor, items],
    *,
    directions: int,
    classifier_weight: Float[Tensor, "classes features"] | None = None,
) -> Subclasses:
    """Principal directions of each class, once, before training.

    Args:
        embeddings: The teacher's, [n D].
        labels: Their classes, 0 .. K-1, each with more than ``directions`` items.
        directions: Number of them for each class.
        classifier_weight: Last layer of the teacher, [K D]: directions it sees are projected out
            first, since class probabilities tell of them already.

    Raises:
        ShapeError: Shapes that do not fit, or a class with too few items.
        ConfigError: More directions than there are.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ShapeError(
            f"lelp_subclasses: embeddings must be [n D] and labels [n], got "
            f"{list(embeddings.shape)} and {list(labels.shape)}"
        )
    width, seen = embeddings.shape[1], 0
    projector = None
    if classifier_weight is not None:
        projector = null_space_projector(classifier_weight)
        seen = int(torch.linalg.matrix_rank(classifier_weight))
    if not 1 <= directions <= width - seen:
        raise ConfigError(
            f"lelp_subclasses: directions must be in [1, {width - seen}], got {directions}"
        )
    means, axes, variances = [], [], []
    for label in range(int(labels.max()) + 1):
        own = embeddings[labels == label]
        if len(own) <= directions:
            raise ShapeError(
                f"lelp_subclasses: class {label} must have more than {directions} items, got "
                f"{len(own)}"
            )
        mean = own.mean(0)
        gap = own - mean if projector is None else (own - mean) @ projector
        _, spread, rotation = torch.linalg.svd(gap, full_matrices=False)
        means.append(mean)
        axes.append(rotation[:directions])
        variances.append(spread[:directions].square() / (len(own) - 1))
    return Subclasses(torch.stack(means), torch.stack(axes), torch.stack(variances))


def lelp_targets(
    embeddings: Float[Tensor, "batch features"],
    class_probabilities: Float[Tensor, "batch classes"],
    subclasses: Subclasses,
    *,
    T: float = 1.0,
) -> Float[Tensor, "batch subclasses"]:
    """Soft labels over K 2d subclasses: they add up to the teacher's class probabilities.

    Assumptions of ours: each direction gives two subclasses, scored by plus and minus the
    standardized coordinate; within a class ``softmax(scores / T)``.

    Args:
        embeddings: The teacher's, [N D].
        class_probabilities: The teacher's, [N K].
        subclasses: From `lelp_subclasses`.
        T: Temperature > 0 of the scores.

    Returns:
        [N K 2d], flattened to [N 2dK]: train a `LelpHead` on it by soft cross-entropy
        (``F.cross_entropy(logits, targets)``).
    """
    gap = embeddings.unsqueeze(1) - subclasses.mean  # [N K D]
    along = torch.einsum("nkd,ksd->nks", gap, subclasses.axes)
    along = along / subclasses.variance.sqrt().clamp_min(torch.finfo(along.dtype).eps)
    shares = torch.softmax(torch.cat([along, -along], -1) / T, -1)
    return (class_probabilities.unsqueeze(-1) * shares).flatten(1)


class LelpHead(nn.Linear):
    """The student's last layer, with an output for each subclass.

    Args:
        in_features: Width of the student.
        num_classes: K.
        directions: As in `lelp_subclasses`; each class has twice as many outputs.
    """

    def __init__(self, in_features: int, num_classes: int, directions: int) -> None:
        super().__init__(in_features, num_classes * 2 * directions)
        self.num_classes = num_classes

    def classes(self, logits: Float[Tensor, "batch subclasses"]) -> Float[Tensor, "batch classes"]:
        """Logits of classes: a class is as probable as its subclasses together."""
        return logits.unflatten(1, (self.num_classes, -1)).logsumexp(-1)
