"""A network of any prediction on any path, read as the velocity of the linear path."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from potstill.core import ConfigError, nearest
from potstill.flow.teachers.networks import call_network, without_label_dropout
from potstill.flow.teachers.paths import EDM, Linear, Native, NoisePath, VariancePreserving

__all__ = ["PREDICTIONS", "Velocity", "spread"]

PREDICTIONS = ("flow", "epsilon", "v_prediction", "sample", "edm")
_NEAR_THE_END = 1e-3  # of an end where a prediction says nothing about the velocity


class Target(NamedTuple):
    """What a network predicted, and what it should have.

    Attributes:
        predicted: As the network gives it.
        wanted: Value of the same kind.
    """

    predicted: Tensor
    wanted: Tensor


def spread(t: Tensor | float, x: Tensor) -> Tensor:
    """Times as [items 1 ...], of the dtype and on the device of ``x``."""
    if not isinstance(t, Tensor):
        t = torch.full((), t, dtype=x.dtype, device=x.device)  # a copy would wait for a GPU
    times = t.to(x).expand(len(x))
    return times.view(-1, *[1] * (x.ndim - 1))


class Velocity(nn.Module):
    """A network as ``u(x_t, t) = E[z - x | x_t]`` on ``x_t = (1 - t) x + t z``.

    All that it can say follows: ``denoise`` is ``x_t - t u``, ``noise`` is ``x_t + (1 - t) u``.
    Exact for every prediction: with ``x_n = (alpha + sigma) x_t``, epsilon gives
    ``x = (x_n - sigma e) / alpha``, v gives ``x = alpha x_n - sigma v``, EDM's network F gives
    ``x = c_skip x_n + c_out F(c_in x_n, ln(sigma) / 4)``.

    Source: Salimans and Ho, ICLR 2022 (v); Karras et al., NeurIPS 2022, Eq. (7) (EDM).

    Args:
        model: A network of diffusers, or any ``model(x_n, time, condition)``.
        prediction: What it predicts: ``flow`` (the velocity), ``epsilon``, ``v_prediction``,
            ``sample`` (the clean item, such as EDM's denoiser D), ``edm`` (F inside of D).
        path: Its path; the linear one by default.

    Raises:
        ConfigError: An unknown prediction, or one that its path does not have.
    """

    def __init__(
        self, model: nn.Module, prediction: str = "flow", path: NoisePath | None = None
    ) -> None:
        super().__init__()
        path = path or Linear()
        if prediction not in PREDICTIONS:
            raise ConfigError(
                f"Velocity: unknown prediction {prediction!r}; {nearest(prediction, PREDICTIONS)}"
            )
        needs = {"flow": Linear, "v_prediction": VariancePreserving, "edm": EDM}.get(prediction)
        if needs is not None and not isinstance(path, needs):
            raise ConfigError(
                f"Velocity: prediction={prediction!r} must have a path of {needs.__name__}, got "
                f"{type(path).__name__}"
            )
        self.model, self.prediction, self.path = model, prediction, path
        # Noise says nothing about the data where there is only noise; the reverse at the start.
        self.low = max(path.low, _NEAR_THE_END if prediction == "sample" else 0.0)
        self.high = min(path.high, 1 - _NEAR_THE_END if prediction == "epsilon" else 1.0)

    def forward(self, x: Tensor, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """`velocity`."""
        return self.velocity(x, t, condition)

    def velocity(self, x: Tensor, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """``u(x, t)``; beyond the times that the network knows, that of the nearest one.

        Args:
            x: Items on the linear path, [items ...].
            t: Time of each, or of all, in [0, 1].
            condition: Condition of each, or None.
        """
        t = spread(t, x).clamp(self.low, self.high)
        native = self.path.at(t)
        raw = self._raw(x, native, condition)
        if self.prediction == "flow":
            return raw
        if self.prediction == "epsilon":
            return (raw - x) / (1 - t)
        if self.prediction == "v_prediction":
            noised = (native.alpha + native.sigma) * x
            clean = native.alpha * noised - native.sigma * raw
            return native.sigma * noised + native.alpha * raw - clean
        clean = raw if self.prediction == "sample" else self._preconditioned(x, native, raw)
        return (x - clean) / t

    def denoise(self, x: Tensor, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """``E[x_0 | x_t = x]``, the clean item."""
        known = spread(t, x).clamp(self.low, self.high)
        return x - known * self.velocity(x, t, condition)

    def noise(self, x: Tensor, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """``E[z | x_t = x]``."""
        known = spread(t, x).clamp(self.low, self.high)
        return x + (1 - known) * self.velocity(x, t, condition)

    def target(
        self, clean: Tensor, noise: Tensor, t: Tensor | float, condition: Tensor | None = None
    ) -> Target:
        """Prediction and target of training by denoising, in what the network predicts itself.

        For EDM that is the loss with the weight ``1 / c_out^2``.
        """
        t = spread(t, clean).clamp(self.low, self.high)
        native = self.path.at(t)
        x = (1 - t) * clean + t * noise
        raw = self._raw(x, native, condition)
        if self.prediction == "edm":
            skip, out, _ = self._factors(native)
            return Target(raw, (clean - skip * (1 + native.sigma) * x) / out)
        wanted = {
            "flow": noise - clean, "epsilon": noise, "sample": clean,
            "v_prediction": native.alpha * noise - native.sigma * clean,
        }[self.prediction]  # fmt: skip
        return Target(raw, wanted)

    def trainable(self) -> Velocity:
        """A copy with parameters of its own that train."""
        model = without_label_dropout(copy.deepcopy(self.model)).requires_grad_()
        return Velocity(model, self.prediction, copy.deepcopy(self.path))

    def _raw(self, x: Tensor, native: Native, condition: Tensor | None) -> Tensor:
        noised, time = (native.alpha + native.sigma) * x, native.time
        if self.prediction == "edm":
            noised, time = self._factors(native)[2] * noised, native.sigma.log() / 4
        return call_network(self.model, noised, time.flatten(), condition)

    def _factors(self, native: Native) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in of EDM."""
        path: Any = self.path
        data, sigma = path.sigma_data, native.sigma
        total = sigma.square() + data**2
        return data**2 / total, sigma * data / total.sqrt(), 1 / total.sqrt()

    def _preconditioned(self, x: Tensor, native: Native, raw: Tensor) -> Tensor:
        skip, out, _ = self._factors(native)
        return skip * (1 + native.sigma) * x + out * raw
