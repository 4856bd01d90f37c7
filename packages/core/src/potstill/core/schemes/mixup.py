"""Distillation on mixed inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.core.errors import ConfigError
from potstill.core.schemes.offline import LogitDistiller
from potstill.core.vocabulary.objective import Losses, Objective

__all__ = ["MixupDistiller", "mixup"]


def mixup(
    x: Float[Tensor, batch * rest],
    lam: float | Float[Tensor, batch],
    permutation: Int[Tensor, batch],
) -> Float[Tensor, batch * rest]:
    """``lam x + (1 - lam) x[permutation]``, with one lam or one for each item.

    Source: Zhang et al., mixup, ICLR 2018.

    Example:
        >>> mixup(torch.tensor([[0.0], [1.0]]), 0.75, torch.tensor([1, 0])).flatten()
        tensor([0.2500, 0.7500])
    """
    if isinstance(lam, Tensor) and lam.ndim:
        lam = lam.reshape(-1, *[1] * (x.ndim - 1))
    return lam * x + (1 - lam) * x[permutation]


class MixupDistiller(LogitDistiller):
    """Student and teacher see the same mixed inputs; labels are mixed alike.

    Source: Choi et al., Understanding the Role of Mixup in Knowledge Distillation, WACV 2023.
    Partial mixup (a share of the batch stays as it is) keeps the teacher near the data it knows.
    Their temperatures are the deviations of each row: ``partial(logit_std, T=1, eps=0)``.

    Args:
        student: Module to train.
        objective: Terms as in `LogitDistiller`; labels arrive as probabilities [N C], so criteria
            that need integer labels do not fit.
        teacher: Module that sees the same inputs.
        num_classes: C.
        alpha: lam ~ Beta(alpha, alpha), one a step.
        share: Share of the batch that is mixed (their ``partmixup = 0.9`` is a share of 0.1).

    Raises:
        ConfigError: An option out of range.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        teacher: nn.Module | None = None,
        *,
        num_classes: int,
        alpha: float = 1.0,
        share: float = 1.0,
    ) -> None:
        super().__init__(student, objective, teacher)
        if not alpha > 0 or not 0 <= share <= 1:
            raise ConfigError(
                f"MixupDistiller: alpha must be > 0 and share in [0, 1], got {alpha}, {share}"
            )
        self.num_classes, self.alpha, self.share = num_classes, alpha, share

    def forward(self, batch: Any, step: int) -> Losses:
        """Mix a batch ``(x, y)`` and compare; draws from the global stream, which `fit` seeds."""
        x, y = batch
        lam, permutation = self.draw(len(x))
        lam, permutation = lam.to(x), permutation.to(x.device)
        targets = F.one_hot(y, self.num_classes).to(x.dtype)
        return self.compare(step, mixup(x, lam, permutation), mixup(targets, lam, permutation))

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """One lam, 1 for the items that stay, and the partners of all items."""
        drawn = torch.distributions.Beta(self.alpha, self.alpha).sample()
        lam = torch.ones(size)
        lam[: round(self.share * size)] = drawn
        return lam, torch.randperm(size)
