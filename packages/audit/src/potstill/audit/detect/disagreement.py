"""Disagreement at run time: a student of one's own data beside the teacher from a stranger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from potstill.audit.attacks.success import outputs
from potstill.core import ConfigError, ShapeError
from potstill.core.criteria import gjsd

__all__ = ["Disagreement", "jsd"]


def jsd(
    a: Float[Tensor, "items classes"], b: Float[Tensor, "items classes"]
) -> Float[Tensor, " n"]:
    """Jensen-Shannon divergence of two models' outputs for each item, in nats, in float64.

    Raises:
        ShapeError: Logits of different shapes: other classes, or other items.
    """
    if a.shape != b.shape:
        raise ShapeError(
            f"jsd: both models must give the same logits, got {list(a.shape)} and "
            f"{list(b.shape)}; have they the same classes in the same order?"
        )
    return gjsd(a.double(), b.double(), reduction="none")


@dataclass(frozen=True)
class Disagreement:
    """Two models that should agree, and from which divergence on they do not.

    The second model may be a student that was distilled on your own inputs, one that learned your
    own labels alone (the strongest and simplest), or one by another criterion.

    Attributes:
        first: The model under audit.
        second: The model of your own.
        threshold: Divergence above which an input is reported, in nats.

    Example:
        >>> import torch
        >>> theirs, mine, clean = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), torch.randn(100, 4)
        >>> watch = Disagreement.calibrated(theirs, mine, clean, false_alarms=0.05)
        >>> bool(watch(clean).float().mean() <= 0.05)
        True
    """

    first: Callable[[Any], Any]
    second: Callable[[Any], Any]
    threshold: float

    @classmethod
    def calibrated(
        cls,
        first: Callable[[Any], Any],
        second: Callable[[Any], Any],
        clean: Tensor,
        false_alarms: float = 0.05,
    ) -> Disagreement:
        """A threshold that a share of clean inputs exceeds.

        Args:
            first: The model under audit.
            second: The model of your own.
            clean: Clean inputs that neither has trained on.
            false_alarms: Share of clean inputs that may be reported, in (0, 1).

        Raises:
            ConfigError: A share out of range, or too few inputs for it.
        """
        if not 0 < false_alarms < 1 or len(clean) * false_alarms < 1:
            raise ConfigError(
                "Disagreement: false_alarms must be in (0, 1) and clean inputs at least "
                f"1 / false_alarms, got {false_alarms} and {len(clean)}"
            )
        found = jsd(outputs(first, clean), outputs(second, clean))
        return cls(first, second, float(found.quantile(1 - false_alarms, interpolation="higher")))

    def scores(self, x: Tensor) -> Float[Tensor, " items"]:
        """Divergence for each input."""
        return jsd(outputs(self.first, x), outputs(self.second, x))

    def __call__(self, x: Tensor) -> Bool[Tensor, " items"]:
        """Inputs on which the models disagree."""
        return self.scores(x) > self.threshold
