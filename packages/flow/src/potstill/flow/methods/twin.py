"""TwinFlow: one network that is teacher, student and critic, told apart by its two times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import ConfigError, Distiller, Losses, Objective
from potstill.flow.methods.draws import Batch, noise_like, times_like
from potstill.flow.student import Generator
from potstill.flow.teachers.networks import call_network
from potstill.flow.teachers.velocity import spread

__all__ = ["Twin", "TwinFlow"]


class Twin(Generator):
    """A network of two times: ``F(x, t, until)`` is the mean velocity from t down to ``until``.

    Negative times are those of the student's own samples. The second time enters as one more
    channel, or number of a point, so any network will do that takes and gives one more.

    Source: Cheng et al., TwinFlow, ICLR 2026.

    Args:
        model: A network of diffusers, or any ``model(x, time, condition)``.
        scale: The network's time at t = 1; 1000 for diffusers.
        shape: Shape of an item.
        classes: Number of classes; 0 where there are none.
        about: Method and options, for the record.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: float = 1.0,
        shape: tuple[int, ...] = (2,),
        classes: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(shape, classes, about)
        self.model, self.scale = model, scale

    def velocity(
        self, x: Tensor, t: Tensor | float, until: Tensor | float, condition: Tensor | None = None
    ) -> Tensor:
        """The mean velocity, as ``x``; at ``until = t`` that of the path itself."""
        time = spread(t, x).flatten() * self.scale
        plane = spread(until, x).expand_as(x[:, :1])
        return call_network(self.model, torch.cat([x, plane], 1), time, condition)[:, :-1]

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Items from noise, in one evaluation."""
        return noise - self.velocity(noise, 1.0, 0.0, condition)


class TwinFlow(Distiller):
    """Train such a network on real items, without a teacher and without a critic of its own.

    Terms: ``flow`` (the velocity of real items, noised). ``jump`` (from any time to any earlier
    one, and what two smaller jumps of the current weights say; the correction is clamped to 1).
    ``fake`` (the velocity of the student's samples, at negative times). ``rectify`` (the one-step
    velocity, moved by the difference of the two): distribution matching inside of one network.

    Source: Cheng et al., TwinFlow, ICLR 2026; jumps as in RCGM of order 2. The published code takes
    jumps of a moving average of the weights.

    Args:
        student: The network.
        weights: Weights of the terms, where they are not 1.
        step: First part of a jump, along the real velocity, in (0, 1).

    Raises:
        ConfigError: A step outside (0, 1), or a term that is not there.
    """

    def __init__(
        self, student: Twin, weights: Mapping[str, float] | None = None, *, step: float = 0.01
    ) -> None:
        names = ("flow", "jump", "fake", "rectify")
        if not 0 < step < 1 or set(weights or ()) - set(names):
            raise ConfigError(
                f"TwinFlow: step must be in (0, 1) and weights of {', '.join(names)}, got {step} "
                f"and {dict(weights or {})}"
            )
        given = {name: ((weights or {}).get(name, 1.0), F.mse_loss) for name in names}
        super().__init__(student, Objective(given))
        self.step = step

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of a batch of real items and noise."""
        if batch.real is None:
            raise ConfigError("TwinFlow: real items must be in the batch, got none")
        net: Any = self.student
        x0, z, c = batch.real, batch.noise, batch.condition
        t = times_like(x0)
        noised = (1 - spread(t, x0)) * x0 + spread(t, x0) * z
        terms = {
            "flow": (net.velocity(noised, t, t, c), z - x0),
            "jump": self._jump(net, x0, z, c),
        }
        one_step = net.velocity(z, 1.0, 0.0, c)
        made = (z - one_step).detach()
        noise, t = noise_like(made), times_like(made)
        noised = (1 - spread(t, made)) * made + spread(t, made) * noise
        fake = net.velocity(noised, -t, -t, c)
        with torch.no_grad():
            move = fake - net.velocity(noised, t, t, c)
        terms |= {"fake": (fake, noise - made), "rectify": (one_step, (one_step - move).detach())}
        return self.objective(step, terms)

    def _jump(self, net: Twin, x0: Tensor, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """``F - clamp(((t - until) F - step v - I) / step)``, I by two jumps from t - step on."""
        t = times_like(x0, self.step, 1.0)
        until = times_like(x0) * (t - self.step)
        b, e = spread(t, x0), spread(until, x0)
        velocity, x = z - x0, (1 - b) * x0 + b * z
        mean = net.velocity(x, t, until, c)
        with torch.no_grad():
            begin, moved = b - self.step, x - self.step * velocity
            half = (begin - e) / 2
            way = torch.zeros_like(x)
            for a in (begin, begin - half):
                part = half * net.velocity(moved, a.flatten(), (a - half).flatten(), c)
                moved, way = moved - part, way + part
            wrong = ((b - e) * mean - way) / self.step - velocity
        return mean, (mean - wrong.clamp(-1, 1)).detach()
