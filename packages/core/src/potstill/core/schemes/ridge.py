"""Self-distilled kernel ridge regression: the exact test bed of the theory.

Source: Borup and Andersen, Even your Teacher Needs Guidance, NeurIPS 2021; Mobahi, Farajtabar and
Bartlett, Self-Distillation Amplifies Regularization in Hilbert Space, NeurIPS 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core.errors import ConfigError
from potstill.core.schemes.generations import optimal_mixing

__all__ = ["KernelRidge", "rbf"]


def rbf(
    x: Float[Tensor, "n features"], other: Float[Tensor, "m features"], length: float
) -> Float[Tensor, "n m"]:
    """Gaussian kernel ``exp(-|x - x'|^2 / (2 length^2))``."""
    return (-torch.cdist(x, other).square() / (2 * length**2)).exp()


@dataclass(frozen=True)
class KernelRidge:
    """Kernel ridge regression that is taught by its own fit, in closed form.

    ``yhat_1 = A y``, ``yhat_k = A (alpha y + (1 - alpha) yhat_{k-1})``, ``A = K (K + lam I)^-1``.

    Attributes:
        kernel: K on the training points, [n n].
        y: Targets, [n].
        lam: Regularization > 0.

    Example:
        >>> x = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
        >>> ridge = KernelRidge(rbf(x, x, 0.3), x[:, 0].sin(), lam=0.1)
        >>> far = ridge.steps(60, alpha=0.5)[-1]
        >>> bool(torch.allclose(far, ridge.limit(alpha=0.5)))
        True
    """

    kernel: Tensor
    y: Tensor
    lam: float

    def __post_init__(self) -> None:
        if not self.lam > 0:
            raise ConfigError(f"KernelRidge: lam must be > 0, got {self.lam}")

    def _solve(self, y: Tensor, lam: float) -> Tensor:
        return torch.linalg.solve(self.kernel + lam * torch.eye(len(y)).to(self.kernel), y)

    def fit(self, y: Tensor) -> Tensor:
        """Fitted values of targets ``y``: ``A y``."""
        return self.kernel @ self._solve(y, self.lam)

    def predict(self, cross: Float[Tensor, "m n"], y: Tensor) -> Float[Tensor, m]:
        """Predictions at new points with kernel ``cross`` to the training points."""
        return cross @ self._solve(y, self.lam)

    def steps(self, count: int, alpha: float) -> list[Tensor]:
        """Fitted values of ``count`` generations."""
        fitted = [self.fit(self.y)]
        for _ in range(count - 1):
            fitted.append(self.fit(alpha * self.y + (1 - alpha) * fitted[-1]))
        return fitted

    def limit(self, alpha: float) -> Tensor:
        """After infinitely many generations: ``K (K + lam/alpha I)^-1 y``, amplified ridge.

        Raises:
            ConfigError: alpha is not in (0, 1]; without labels everything decays to 0.
        """
        if not 0 < alpha <= 1:
            raise ConfigError(f"KernelRidge: alpha must be in (0, 1], got {alpha}")
        return self.kernel @ self._solve(self.y, self.lam / alpha)

    def best_alpha(self, cross: Tensor, y_val: Tensor, previous: Tensor) -> float:
        """The share of labels that is best on validation data, given the previous fit."""
        u, v = self.predict(cross, self.y), self.predict(cross, previous)
        return optimal_mixing(y_val, u, v)
