"""The staged objective: feature, density, colour and pixel, shallow to deep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from potstill.core import ConfigError, Mean, Objective, ShapeError, Weight

__all__ = ["Distance", "FeatureGap", "Progression", "density_gap", "staged"]

Norm = Literal["normalized", "paper"]


@dataclass(frozen=True)
class Progression:
    """Terms of a conversion: their weights, and when they count.

    Source: Fang et al., "One is All", AAAI 2023: features first, then density and colour of
    points, then pixels. ``feature_until`` and ``points_until`` are shares of the budget, be it
    steps or seconds. PVD's own are 1/15 and 1/6; its follow-up PVD-AL sets both to 0.

    Args:
        feature_until: Share until which only the features count (and block 2 is not evaluated).
        points_until: Share from which on pixels count too.
        feature: Weight of the features.
        density: Weight of the clamped log density.
        color: Weight of the colours of points.
        pixel: Weight of the rendered colours.
        sparsity: Weight of the mean size of density factors (vm only).
        feature_decay: The features' weight is multiplied by this at every step.
        norm: "normalized" divides distances by the root of the number of elements, so that weights
            do not depend on the batch; "paper" is PVD's norm over the whole batch.
        clamp: Bounds of the log density in losses.
        hidden: Samples that the teacher lets less light through to are left out; 0 keeps all.
        pools: Bring hard poses and rays back (PVD-AL).

    Raises:
        ConfigError: A share outside [0, 1] or out of order, a negative weight, empty bounds.
    """

    feature_until: float = 1 / 15
    points_until: float = 1 / 6
    feature: float = 0.1
    density: float = 0.1
    color: float = 0.1
    pixel: float = 1.0
    sparsity: float = 0.0
    feature_decay: float = 1.0
    norm: Norm = "normalized"
    clamp: tuple[float, float] = (-4.0, 7.0)
    hidden: float = 1e-2
    pools: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.feature_until <= self.points_until <= 1:
            raise ConfigError(
                "Progression: feature_until and points_until must be shares in this order, got "
                f"{self.feature_until} and {self.points_until}"
            )
        weights = (self.feature, self.density, self.color, self.pixel, self.sparsity)
        if min(weights) < 0 or not 0 < self.feature_decay <= 1 or not 0 <= self.hidden < 1:
            raise ConfigError(
                "Progression: weights must not be negative, feature_decay in (0, 1] and hidden in "
                f"[0, 1), got {weights}, {self.feature_decay} and {self.hidden}"
            )
        if self.norm not in ("normalized", "paper"):
            raise ConfigError(f"Progression: norm must be normalized or paper, got {self.norm!r}")
        if not self.clamp[0] < self.clamp[1]:
            raise ConfigError(f"Progression: clamp must be a range, got {self.clamp}")
        if not self.pixel and not (self.density and self.color):
            raise ConfigError("Progression: without pixels, density and color need weight, got 0")

    @classmethod
    def paper(cls) -> Progression:
        """PVD as published: its norm, weights, decay, clamps, and every sample."""
        return cls(
            feature=2e-3, density=2e-3, color=2e-3, sparsity=1e-4, feature_decay=0.995,
            norm="paper", clamp=(-2.0, 7.0), hidden=0.0,
        )  # fmt: skip

    def without_features(self) -> Progression:
        """For kinds whose block 1 means something else: no feature term, no stage for it."""
        return replace(self, feature=0.0, feature_until=0.0)


class Distance(nn.Module):
    """Root of the summed squares of differences; of their mean when normalized.

    In several processes the sums are those of all of them, so that each gets its part of the
    gradient of one global norm, and the mean of their values is that norm.

    Args:
        norm: As in `Progression`.

    Example:
        >>> a, b = torch.zeros(2, 2), torch.full((2, 2), 3.0)
        >>> float(Distance("normalized")(a, b)), float(Distance("paper")(a, b))
        (3.0, 6.0)
    """

    def __init__(self, norm: Norm = "normalized") -> None:
        super().__init__()
        self.norm = norm

    def forward(self, values: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Distance of values from targets of the same shape, where the mask is true.

        Args:
            values: Values of the student, any shape.
            targets: Values of the teacher.
            mask: Booleans that broadcast to them; all of them when None.

        Raises:
            ShapeError: The shapes differ.
        """
        if values.shape != targets.shape:
            raise ShapeError(
                f"Distance: values must be {list(targets.shape)} like targets, got "
                f"{list(values.shape)}"
            )
        squares = (values - targets).square()
        if mask is not None:
            squares = squares * mask
        total = squares.sum()
        wide = torch.float32 if total.device.type == "mps" else torch.float64
        both = torch.stack([total.detach(), total.new_tensor(squares.numel())]).to(wide)
        world = 1
        if dist.is_available() and dist.is_initialized():
            world = dist.get_world_size()
            dist.all_reduce(both)
        count = both[1].clamp(min=1) if self.norm == "normalized" else torch.ones_like(both[1])
        root = (both[0] / count + 1e-16).sqrt()
        # d root / d total = 1 / (2 root count); a sum of zero has no direction
        slope = (world * total / (2 * root * count)).to(total)
        # Over all processes already, so each counts the same.
        return Mean.known(root.to(total) + slope - slope.detach(), 1)

    def extra_repr(self) -> str:
        """The norm, for ``print``."""
        return f"norm={self.norm!r}"


def density_gap(
    raw: Float[Tensor, " points"], target: Float[Tensor, " points"], clamp: tuple[float, float]
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """The pair that a distance of log densities compares.

    Source: Fang et al., "One is All", AAAI 2023: losses see log densities clamped to [-2, 7], or
    surfaces would outweigh everything. Clamping both sides as there, however, leaves a student
    that is out of bounds without gradient. Here it is clamped only on the side where the teacher
    is out of bounds as well, so it can always come back.

    Args:
        raw: Log density of the student, not clamped.
        target: Log density of the teacher.
        clamp: Lower and upper bound.

    Example:
        >>> raw, target = torch.tensor([-9.0, -9.0]), torch.tensor([-5.0, 0.0])
        >>> density_gap(raw, target, (-2.0, 7.0))
        (tensor([-2., -9.]), tensor([-2.,  0.]))
    """
    low, high = clamp
    raw = torch.where(target <= low, raw.clamp(min=low), raw)
    return torch.where(target >= high, raw.clamp(max=high), raw), target.clamp(low, high)


class FeatureGap(nn.Module):
    """Distance of the outputs of block 1: log density first, then what block 2 gets.

    Args:
        distance: Compares them.
        clamp: Bounds of the log density, as in `density_gap`.
        projector: Maps the student's features, without the density, to the teacher's width. It
            trains along and stays behind when the student is saved.

    Raises:
        ShapeError: The widths differ and there is no projector.
    """

    def __init__(
        self, distance: Distance, clamp: tuple[float, float], projector: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.distance, self.clamp, self.projector = distance, clamp, projector

    def forward(
        self,
        raw: Tensor,
        feature: Float[Tensor, "points width_s"],
        target_raw: Tensor,
        target: Float[Tensor, "points width_t"],
        visible: Bool[Tensor, " points"],
    ) -> Tensor:
        """Compare the densities of all points and the features of those that can be seen."""
        ours = feature[:, 1:] if self.projector is None else self.projector(feature[:, 1:])
        if ours.shape != target[:, 1:].shape:
            raise ShapeError(
                f"FeatureGap: feature must be as wide as the teacher's {target.shape[1]}, got "
                f"{feature.shape[1]}; pass project=True to learn a projection"
            )
        s, t = density_gap(raw, target_raw, self.clamp)
        mask = torch.cat([torch.ones_like(visible)[:, None], visible[:, None].expand_as(ours)], 1)
        return self.distance(
            torch.cat([s[:, None], ours], dim=1),
            torch.cat([t[:, None], target[:, 1:]], dim=1),
            mask,
        )


def staged(
    progression: Progression, progress: Callable[[], float], projector: nn.Module | None = None
) -> Objective:
    """The objective of a conversion; its weights follow the share of the budget that is used.

    Args:
        progression: Terms and when they count.
        progress: Function that gives that share, in [0, 1].
        projector: Map of features of different widths.

    Example:
        >>> objective = staged(Progression(), lambda: 0.1)
        >>> sorted(objective.at(step=7))
        ['color', 'density', 'feature']
    """
    distance = Distance(progression.norm)

    def since(share: float, weight: float) -> Weight:
        return lambda step: weight if progress() >= share else 0.0

    def gap(raw: Tensor, target: Tensor) -> Tensor:
        return distance(*density_gap(raw, target, progression.clamp))

    decay = progression.feature_decay
    return Objective(
        feature=(
            lambda step: progression.feature * decay**step,
            FeatureGap(distance, progression.clamp, projector),
        ),
        density=(since(progression.feature_until, progression.density), gap),
        color=(since(progression.feature_until, progression.color), distance),
        pixel=(since(progression.points_until, progression.pixel), distance),
        sparsity=(since(progression.points_until, progression.sparsity), sparsity),
    )


def sparsity(*factors: Tensor) -> Tensor:
    """Mean size of the factors: TensoRF's pull towards empty space (Chen et al., Eq. 12)."""
    return Mean.known(torch.stack([factor.abs().mean() for factor in factors]).sum(), 1)
