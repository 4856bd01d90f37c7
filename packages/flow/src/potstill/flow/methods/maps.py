"""What the mean velocity of a path must be: the condition that BOOT and FreeFlow train on."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from potstill.core import ConfigError, nearest
from potstill.flow.methods.draws import Batch, times_like
from potstill.flow.teachers.velocity import spread

__all__ = ["Derivative", "FlowMap"]

Derivative = Literal["bootstrap", "finite", "jvp"]
_DERIVATIVES = ("bootstrap", "finite", "jvp")


class FlowMap:
    """The condition ``F + delta dF/ddelta = u(z - delta F, 1 - delta)`` of the mean velocity F.

    "bootstrap" takes one DDIM step of the teacher from the student's own estimate at
    ``delta - step``, which is that condition in its discrete form; "finite" and "jvp" take the
    derivative by two evaluations and by forward differentiation.

    Source: Gu et al., BOOT, 2023; Tong et al., FreeFlow, 2025.

    Args:
        derivative: Its form.
        step: Step in time of "bootstrap" and "finite", in (0, 1).

    Call:
        student: The student, of mean velocities [items ...].
        teacher: The teacher u, frozen.
        batch: Noise z and conditions.

    Returns:
        What the student says, and what it should say.

    Raises:
        ConfigError: An unknown derivative, or a step outside (0, 1).
    """

    def __init__(self, derivative: Derivative, step: float) -> None:
        if derivative not in _DERIVATIVES:
            raise ConfigError(
                f"OneStep: unknown derivative {derivative!r}; {nearest(derivative, _DERIVATIVES)}"
            )
        if not 0 < step < 1:
            raise ConfigError(f"OneStep: step must be in (0, 1), got {step}")
        self.derivative, self.step = derivative, step

    def __call__(self, student: Any, teacher: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both sides of it."""
        found: tuple[Tensor, Tensor] = getattr(self, f"_{self.derivative}")(student, teacher, batch)
        return found

    def _bootstrap(self, student: Any, teacher: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """One DDIM step of the teacher in ``y = z - F``, from the student's own estimate."""
        z, c = batch.noise, batch.condition
        delta = spread(times_like(z).clamp_min(1e-4), z)
        before = (delta - self.step).clamp_min(0)
        with torch.no_grad():
            y = z - student.average(z, before.flatten(), c)
            clean = teacher.model.denoise(before * y + (1 - before) * z, (1 - before).flatten(), c)
            ratio = before * (1 - delta) / ((1 - before) * delta)
            target = z - ratio * y - (1 - ratio) * clean
        return self._scaled(student, student.average(z, delta.flatten(), c), target, delta)

    def _finite(self, student: Any, teacher: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The derivative by two more evaluations, within [0, 1]."""
        z, c = batch.noise, batch.condition
        delta = times_like(z)
        after, before = (delta + self.step).clamp_max(1), (delta - self.step).clamp_min(0)
        with torch.no_grad():
            difference = student.average(z, after, c) - student.average(z, before, c)
            slope = difference / spread(after - before, z)
        average = student.average(z, delta, c)
        return self._residual(student, teacher, batch, delta, average, slope)

    def _jvp(self, student: Any, teacher: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The derivative itself."""
        z, c = batch.noise, batch.condition
        delta = times_like(z)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward differentiation
            found: Any = torch.func.jvp(
                lambda d: student.average(z, d, c), (delta,), (torch.ones_like(delta),)
            )
        return self._residual(student, teacher, batch, delta, *found)

    def _residual(
        self,
        student: Any,
        teacher: Any,
        batch: Batch,
        delta: Tensor,
        average: Tensor,
        slope: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """F, and ``u(z - delta F, 1 - delta) - delta dF/ddelta``."""
        d = spread(delta, average)
        with torch.no_grad():
            u: Tensor = teacher(batch.noise - d * average, 1 - delta, batch.condition)
            wanted = u - d * slope
        return self._scaled(student, average, wanted, d)

    def _scaled(
        self, student: Any, average: Tensor, wanted: Tensor, delta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """In units of what the network predicts: noise is ``delta F`` and what is known."""
        factor = delta if student.net.prediction == "epsilon" else 1.0
        return factor * average, factor * wanted
