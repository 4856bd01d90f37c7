"""A cascade: the student answers where it is sure, the teacher elsewhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from potstill.core.errors import ConfigError, ShapeError
from potstill.core.vocabulary.output import tensor_of
from potstill.core.vocabulary.teacher import Frozen

__all__ = ["Cascade", "calibrate", "most_likely_above"]


def most_likely_above(wrong: int, count: int, confidence: float = 0.9) -> float:
    """Upper bound of a rate of which ``wrong`` of ``count`` independent trials are seen.

    Source: Clopper and Pearson, Biometrika 1934, one-sided: the rate at which ``wrong`` or fewer
    have probability ``1 - confidence``.

    Raises:
        ConfigError: No trials, or more wrong than trials, or a confidence outside (0, 1).

    Example:
        >>> round(most_likely_above(0, 100, 0.95), 6), round(most_likely_above(3, 200, 0.95), 6)
        (0.029513, 0.03831)
    """
    if not 0 <= wrong <= count or count < 1 or not 0 < confidence < 1:
        raise ConfigError(
            "most_likely_above: 0 <= wrong <= count, count >= 1 and confidence in (0, 1) are "
            f"needed, got {(wrong, count, confidence)}"
        )
    if wrong == count:
        return 1.0
    low, high = wrong / count, 1.0
    for _ in range(60):  # no inverse of the incomplete beta function in torch: halve
        rate = (low + high) / 2
        low, high = (rate, high) if _at_most(wrong, count, rate) > 1 - confidence else (low, rate)
    return high


def _at_most(wrong: int, count: int, rate: float) -> float:
    """Probability of at most ``wrong`` of ``count``, at a rate in (0, 1)."""
    k = torch.arange(wrong + 1, dtype=torch.float64)
    whole = torch.tensor(count, dtype=torch.float64)
    ways = torch.lgamma(whole + 1) - torch.lgamma(k + 1) - torch.lgamma(whole - k + 1)
    terms = ways + k * math.log(rate) + (whole - k) * math.log1p(-rate)
    return float(terms.logsumexp(0).exp())


def calibrate(
    z_s: Float[Tensor, "items classes"],
    z_t: Float[Tensor, "items classes"],
    epsilon: float,
    confidence: float = 0.9,
) -> float:
    """Least confidence from which a student disagrees with its teacher in at most ``epsilon``.

    Among items of which the student is at least that sure, the upper bound of `most_likely_above`
    for its disagreement with the teacher is at most ``epsilon``. The bound is for one threshold
    that was fixed beforehand; choosing the least of many makes it somewhat optimistic, so leave a
    margin. Items must be like those that come later, and not trained on.

    Args:
        z_s: The student's logits on calibration items.
        z_t: The teacher's logits on the same.
        epsilon: Share of kept items that may differ, in (0, 1).
        confidence: Confidence of the bound.

    Returns:
        The threshold; infinity, so that everything goes to the teacher, where too few items or too
        many disagreements leave no other (5 % at 90 % needs 45 items that all agree).

    Raises:
        ShapeError: Logits of different shapes.
        ConfigError: ``epsilon`` outside (0, 1).

    Example:
        >>> z = 5 * torch.eye(4).repeat(25, 1)
        >>> round(calibrate(z, z, 0.05), 4), calibrate(z[:40], z[:40], 0.05)
        (0.9802, inf)
    """
    if z_s.shape != z_t.shape or z_s.ndim != 2:
        raise ShapeError(
            f"calibrate: logits must be [items classes] of one shape, got {list(z_s.shape)} and "
            f"{list(z_t.shape)}"
        )
    if not 0 < epsilon < 1:
        raise ConfigError(f"calibrate: epsilon must be in (0, 1), got {epsilon}")
    sure, label = torch.softmax(z_s.double(), -1).max(-1)
    order = sure.argsort(descending=True)
    sure, differs = sure[order], (label != z_t.argmax(-1))[order].cumsum(0)
    for kept in range(len(sure), 0, -1):
        if kept < len(sure) and sure[kept - 1] == sure[kept]:
            continue  # a threshold keeps equally sure items together
        wrong = int(differs[kept - 1])
        if wrong < kept and _at_most(wrong, kept, epsilon) <= 1 - confidence:
            return float(sure[kept - 1])
    return math.inf


class Cascade(nn.Module):
    """A student that asks its teacher where it is in doubt.

    Args:
        student: Gives logits [items classes].
        teacher: Gives logits for a part of the same items.
        threshold: Probability from which the student's answer stands; see `calibrate`.

    Attributes:
        deferred: Share of the last call's items that went to the teacher.

    Raises:
        ConfigError: A threshold below 0.

    Example:
        >>> cascade = Cascade(nn.Identity(), lambda x: -x, threshold=0.9)
        >>> cascade(torch.tensor([[9.0, 0.0], [1.0, 0.0]])), cascade.deferred
        (tensor([[ 9.,  0.],
                [-1., -0.]]), 0.5)
    """

    def __init__(self, student: nn.Module, teacher: Any, threshold: float) -> None:
        super().__init__()
        if not threshold >= 0:
            raise ConfigError(f"Cascade: threshold must be at least 0, got {threshold}")
        self.student = student
        self.teacher = Frozen(teacher) if isinstance(teacher, nn.Module) else teacher
        self.threshold = threshold
        self.deferred = 0.0

    @torch.no_grad()
    def forward(self, x: Tensor) -> Float[Tensor, "items classes"]:
        """Logits, of the student or of the teacher for each item."""
        z = tensor_of(self.student(x))
        doubt = self.doubts(z)
        self.deferred = float(doubt.float().mean()) if len(doubt) else 0.0
        if bool(doubt.any()):
            z = z.clone()
            z[doubt] = tensor_of(self.teacher(x[doubt])).to(z.dtype)
        return z

    def doubts(self, z: Float[Tensor, "items classes"]) -> Bool[Tensor, " items"]:
        """Items whose answer the teacher has to give, by the student's logits."""
        return torch.softmax(z.double(), -1).amax(-1) < self.threshold
