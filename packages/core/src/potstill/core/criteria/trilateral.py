"""TGeo-KD: how much to trust the teacher, sample by sample, learned on validation data.

After Hu et al., Less or More from Teacher: Exploiting Trilateral Geometry for Knowledge
Distillation, ICLR 2024. In the public code the network that gives the ratios never trains: it is
evaluated without gradient and the upper loss does not contain it. Here the upper loss is
differentiated through one step of the student (`potstill.core.schemes.TrilateralFusion`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.core.criteria.logit import kd
from potstill.core.errors import ShapeError

__all__ = ["RatioNet", "tgeo", "tgeo_reduced_state", "tgeo_state"]


def class_means(
    p: Float[Tensor, "batch classes"], labels: Int[Tensor, batch]
) -> Float[Tensor, "classes classes"]:
    """Mean of ``p`` over the items of each class, 0 for a class without items."""
    hot = F.one_hot(labels, p.shape[1]).to(p)
    return hot.mT @ p / hot.sum(0).clamp_min(1).unsqueeze(1)


def _corners(
    z_s: Tensor, z_t: Tensor, labels: Tensor, means: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student, teacher, truth, and the teacher's mean of the sample's class: points [N C]."""
    if z_s.shape != z_t.shape or z_s.ndim != 2 or labels.shape != z_s.shape[:1]:
        raise ShapeError(
            f"tgeo: z_s and z_t must be [N C] and labels [N], got {list(z_s.shape)}, "
            f"{list(z_t.shape)} and {list(labels.shape)}"
        )
    s, t = torch.softmax(z_s.detach(), -1), torch.softmax(z_t.detach(), -1)
    means = class_means(t, labels) if means is None else means
    return s, t, F.one_hot(labels, s.shape[1]).to(s), means[labels]


def tgeo_state(
    z_s: Float[Tensor, "batch classes"],
    z_t: Float[Tensor, "batch classes"],
    labels: Int[Tensor, batch],
    means: Float[Tensor, "classes classes"] | None = None,
) -> Float[Tensor, "batch nine_classes"]:
    """What the ratio is chosen by: corners and squared edges of the triangles, [N 9C].

    ``[S, T, G, M, (M-S)^2, (G-S)^2, (T-S)^2, (T-G)^2, (M-G)^2]`` with S, T the softmax outputs, G
    the truth and M the teacher's mean over the class. Without gradient.

    Args:
        z_s: Logits of the student.
        z_t: Logits of the teacher.
        labels: int64.
        means: The teacher's mean output for each class (`class_means` over the training data); by
            default that of the batch.
    """
    s, t, g, m = _corners(z_s, z_t, labels, means)
    edges = [(a - b).square() for a, b in ((m, s), (g, s), (t, s), (t, g), (m, g))]
    return torch.cat([s, t, g, m, *edges], 1)


def tgeo_reduced_state(
    z_s: Float[Tensor, "batch classes"],
    z_t: Float[Tensor, "batch classes"],
    labels: Int[Tensor, batch],
    means: Float[Tensor, "classes classes"] | None = None,
) -> Float[Tensor, "batch 11"]:
    """The same geometry in 11 numbers, for many classes (a reduction of ours).

    Probability of the label by S, T and M; lengths of the five edges; cosines at the three corners
    S, T and G of their triangle.
    """
    s, t, g, m = _corners(z_s, z_t, labels, means)
    own = [p.gather(1, labels.unsqueeze(1)) for p in (s, t, m)]
    pairs = ((m, s), (g, s), (t, s), (t, g), (m, g))
    edges = [torch.linalg.vector_norm(a - b, dim=1, keepdim=True) for a, b in pairs]
    corners = [
        F.cosine_similarity(a - at, b - at, dim=1).unsqueeze(1)
        for at, a, b in ((s, t, g), (t, s, g), (g, s, t))
    ]
    return torch.cat([*own, *edges, *corners], 1)


class RatioNet(nn.Sequential):
    """Ratio in (0, 1) for each sample from its state: an MLP with 32 and 16 hidden units.

    Args:
        in_features: 9 C for `tgeo_state`, 11 for `tgeo_reduced_state`.
    """

    def __init__(self, in_features: int) -> None:
        super().__init__(
            nn.Linear(in_features, 32),
            nn.LeakyReLU(),
            nn.Linear(32, 16),
            nn.LeakyReLU(),
            nn.Linear(16, 1),
            nn.Sigmoid(),
            nn.Flatten(0),
        )


def tgeo(
    z_s: Float[Tensor, "batch classes"],
    z_t: Float[Tensor, "batch classes"],
    labels: Int[Tensor, batch],
    ratio: Float[Tensor, batch] | float,
    *,
    T: float = 1.5,
) -> Float[Tensor, ""]:
    """Distillation and cross-entropy mixed sample by sample.

    Source: Hu et al., TGeo-KD, ICLR 2024: ``L = mean_n a_n T^2 KL_n + (1 - a_n) CE_n``. A constant
    ratio is Hinton's mixture. Twice differentiable, also with respect to the ratio.

    Args:
        z_s: Logits of the student.
        z_t: Logits of the teacher.
        labels: int64.
        ratio: a, in [0, 1], [N] or one number.
        T: Temperature > 0.
    """
    soft = kd(z_s, z_t, T=T, reduction="none", blocked=False)
    hard = F.cross_entropy(z_s.to(soft.dtype), labels, reduction="none")
    return (ratio * soft + (1 - ratio) * hard).mean()
