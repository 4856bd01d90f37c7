"""Exact teachers: Gaussians, and mixtures of them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import ConfigError
from potstill.flow.teachers.velocity import spread

__all__ = ["GaussianMixture", "ring"]


class GaussianMixture(nn.Module):
    """The exact velocity of a mixture of Gaussians of one width, as a network.

    With ``v = (1 - t)^2 s^2 + t^2``, weights ``w_k = softmax(-|x - (1 - t) m_k|^2 / 2v)`` and
    ``d_k = x - (1 - t) m_k``: ``u = sum_k w_k ((t - (1 - t) s^2) d_k / v - m_k)``.

    Args:
        means: Centres, [modes size].
        deviation: Standard deviation of each, > 0.

    Raises:
        ConfigError: No centres, or a deviation that is not positive.
    """

    means: Tensor

    def __init__(self, means: Float[Tensor, "modes size"], deviation: float) -> None:
        super().__init__()
        if means.ndim != 2 or not len(means) or not deviation > 0:
            raise ConfigError(
                "GaussianMixture: means must be [modes size] and deviation positive, got "
                f"{list(means.shape)} and {deviation}"
            )
        self.register_buffer("means", means)
        self.deviation = deviation

    def forward(
        self, x: Float[Tensor, "points size"], time: Tensor, condition: Tensor | None = None
    ) -> Float[Tensor, "points size"]:
        """The velocity at points and times in [0, 1]; a condition is the number of a mode."""
        t = spread(time, x)[..., None]
        variance = (1 - t).square() * self.deviation**2 + t.square()
        means = self.means.to(x.dtype)
        away = x[:, None] - (1 - t) * means
        weights = (-away.square().sum(-1, keepdim=True) / (2 * variance)).softmax(1)
        if condition is not None:
            weights = nn.functional.one_hot(condition, len(means)).to(x.dtype)[..., None]
        each = (t - (1 - t) * self.deviation**2) / variance * away - means
        return (weights * each).sum(1)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fresh points, [n size], and the mode of each, [n]."""
        modes = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[modes] + self.deviation * noise, modes

    def within(self, points: Tensor, deviations: float = 3.0) -> tuple[float, int]:
        """Share of points near a mode, and number of modes that have a point near."""
        distance, nearest = torch.cdist(points.to(self.means.dtype), self.means).min(1)
        near = distance <= deviations * self.deviation
        return float(near.double().mean()), len(nearest[near].unique())


def ring(modes: int = 8, radius: float = 2.0, deviation: float = 0.15) -> GaussianMixture:
    """The usual mixture of Gaussians around a circle.

    Example:
        >>> ring(4).means.round().tolist()
        [[2.0, 0.0], [-0.0, 2.0], [-2.0, -0.0], [0.0, -2.0]]
    """
    angles = 2 * math.pi * torch.arange(modes) / modes
    return GaussianMixture(radius * torch.stack([angles.cos(), angles.sin()], 1), deviation)
