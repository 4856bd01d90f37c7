"""Paths from data to noise; each is the linear one with another clock and another scale.

Everywhere else in this package ``x_t = (1 - t) x + t z``: t = 0 is data, t = 1 is noise. A path
with ``x_n = alpha x + sigma z`` is that one at ``t = sigma / (alpha + sigma)``, where
``x_n = (alpha + sigma) x_t``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from potstill.core import ConfigError, nearest

__all__ = ["EDM", "Linear", "Native", "NoisePath", "VariancePreserving", "path_from", "path_of"]


class Native(NamedTuple):
    """A moment of a path as a network counts it.

    Attributes:
        alpha: Factor of the data.
        sigma: Factor of the noise.
        time: What the network takes as its time.
    """

    alpha: Tensor
    sigma: Tensor
    time: Tensor


class NoisePath(nn.Module, ABC):
    """How a network's noise levels and times follow from the linear ``t``.

    Attributes:
        low: Smallest ``t`` that the network knows.
        high: Largest ``t`` that the network knows.
    """

    low: float = 0.0
    high: float = 1.0

    @abstractmethod
    def at(self, t: Tensor) -> Native:
        """Factors and time of the network at linear times ``t``, of any shape."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What `path_from` makes the same path of, as JSON has it."""


class Linear(NoisePath):
    """Rectified flow: ``x_t = (1 - t) x + t z``, as it is.

    Args:
        scale: The network's time at t = 1; 1000 in diffusers.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def at(self, t: Tensor) -> Native:
        """As in the class."""
        return Native(1 - t, t, self.scale * t)

    def options(self) -> dict[str, Any]:
        """The scale."""
        return {"scale": self.scale}


class VariancePreserving(NoisePath):
    """DDPM: ``alpha^2 + sigma^2 = 1`` at steps 0 to T - 1, with ``alpha_k^2 = alphas_cumprod[k]``.

    Between steps the network's time is interpolated in the logarithm of alpha / sigma; factors are
    exact everywhere.

    Args:
        alphas_cumprod: Falling numbers in (0, 1), of at least two steps.

    Raises:
        ConfigError: Other numbers.
    """

    ratios: Tensor

    def __init__(self, alphas_cumprod: Any) -> None:
        super().__init__()
        squares = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        if squares.ndim != 1 or len(squares) < 2 or not bool(
            ((squares > 0) & (squares < 1)).all() and (squares.diff() < 0).all()
        ):  # fmt: skip
            raise ConfigError(
                "VariancePreserving: alphas_cumprod must be falling numbers in (0, 1), at least "
                f"two, got {squares.flatten()[:4].tolist()} ... of shape {list(squares.shape)}; "
                "schedules with zero terminal SNR have no noise prediction at their end"
            )
        self.squares = squares
        self.register_buffer("ratios", 0.5 * (squares / (1 - squares)).log(), persistent=False)
        ends = (1 - squares[[0, -1]]).sqrt() / (
            squares[[0, -1]].sqrt() + (1 - squares[[0, -1]]).sqrt()
        )
        self.low, self.high = ends.tolist()

    def at(self, t: Tensor) -> Native:
        """As in the class."""
        length = (t.square() + (1 - t).square()).sqrt()
        wanted = ((1 - t) / t).log().to(self.ratios.dtype)
        rising = -self.ratios
        right = torch.searchsorted(rising, -wanted.contiguous()).clamp(1, len(rising) - 1)
        left, width = rising[right - 1], rising[right] - rising[right - 1]
        time = (right - 1 + (-wanted - left) / width).clamp(0, len(rising) - 1)
        return Native((1 - t) / length, t / length, time.to(t.dtype))

    def linear_times(self) -> Tensor:
        """The linear time of each step, [T], float64."""
        noise = (1 - self.squares).sqrt()
        return noise / (self.squares.sqrt() + noise)

    def options(self) -> dict[str, Any]:
        """The numbers."""
        return {"alphas_cumprod": self.squares.tolist()}


class EDM(NoisePath):
    """Karras et al., NeurIPS 2022: alpha = 1, and the network's time is sigma.

    Args:
        sigma_min: Smallest noise level that the network knows.
        sigma_max: Largest one.
        sigma_data: Standard deviation of the data, of the preconditioning.
    """

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5
    ) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max or not sigma_data > 0:
            raise ConfigError(
                "EDM: sigma_min, sigma_max and sigma_data must be positive and rising, got "
                f"{sigma_min}, {sigma_max} and {sigma_data}"
            )
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.low, self.high = sigma_min / (1 + sigma_min), sigma_max / (1 + sigma_max)

    def at(self, t: Tensor) -> Native:
        """As in the class."""
        sigma = t / (1 - t)
        return Native(torch.ones_like(t), sigma, sigma)

    def options(self) -> dict[str, Any]:
        """The three levels."""
        names = ("sigma_min", "sigma_max", "sigma_data")
        return {name: getattr(self, name) for name in names}


_PATHS: dict[str, type[NoisePath]] = {
    "linear": Linear, "variance_preserving": VariancePreserving, "edm": EDM,
}  # fmt: skip


def path_from(name: str, options: Mapping[str, Any]) -> NoisePath:
    """A path by its name and options.

    Raises:
        ConfigError: An unknown name, or other options.
    """
    if name not in _PATHS:
        raise ConfigError(f"path_from: unknown path {name!r}; {nearest(name, _PATHS)}")
    return _PATHS[name](**options)


def path_name(path: NoisePath) -> str:
    """The name by which `path_from` knows a path."""
    return next(name for name, kind in _PATHS.items() if type(path) is kind)


def path_of(scheduler: Any) -> tuple[NoisePath, str]:
    """Path and prediction of a scheduler of diffusers, duck-typed: nothing is imported.

    Args:
        scheduler: A flow-matching scheduler, an EDM one, or one with ``alphas_cumprod``.

    Raises:
        ConfigError: A scheduler that is none of these.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    kind = str(config.get("prediction_type", "epsilon"))
    if name.startswith("FlowMatch"):
        return Linear(float(config["num_train_timesteps"])), "flow"
    if name.startswith("EDM"):
        if kind != "epsilon":
            raise ConfigError(f"path_of: {name} must have prediction_type='epsilon', got {kind!r}")
        levels = {key: float(config[key]) for key in ("sigma_min", "sigma_max", "sigma_data")}
        return EDM(**levels), "edm"
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ConfigError(
            f"path_of: the scheduler must have alphas_cumprod or be of flow matching or EDM, got "
            f"{name}; pass path= and prediction= instead"
        )
    return VariancePreserving(scheduler.alphas_cumprod), kind
