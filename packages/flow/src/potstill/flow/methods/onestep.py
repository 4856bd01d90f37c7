"""One-step distillation: flow maps (BOOT, FreeFlow) and distribution matching (DMD, DMD2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from potstill.core import ConfigError, Distiller, Frozen, Losses, Objective, Stage, Turn, nearest
from potstill.flow.methods.critic import (
    Critic,
    discriminator_loss,
    generator_loss,
    matching_loss,
)
from potstill.flow.methods.draws import Batch, noise_like, times_like
from potstill.flow.student import Student
from potstill.flow.teachers.teacher import Teacher
from potstill.flow.teachers.velocity import Velocity, spread

__all__ = ["OneStep", "objectives", "players"]

Derivative = Literal["bootstrap", "finite", "jvp"]
_DERIVATIVES = ("bootstrap", "finite", "jvp")


class OneStep(Distiller):
    """A teacher's path in one evaluation; which terms have weight is the method.

    Terms: ``map`` (the student's mean velocity, and what it should be): BOOT and FreeFlow.
    ``match`` (see `matching_loss`): DMD, and FreeFlow's correction. ``adversarial`` (scores): DMD2.
    ``regression`` (samples, the teacher's endpoints of the same noise): DMD. In the turn
    ``critic``: ``denoise`` (the critic's prediction of noised samples, and what it should be) and
    ``discriminator`` (scores of samples and of real items).

    ``map`` is the condition ``F + delta dF/ddelta = u(z - delta F, 1 - delta)`` of the mean
    velocity F. "bootstrap" takes one DDIM step of the teacher from the student's own estimate at
    ``delta - step``, which is that condition in its discrete form; "finite" and "jvp" take the
    derivative by two evaluations and by forward differentiation.

    Source: Gu et al., BOOT, 2023; Tong et al., FreeFlow, 2025; Yin et al., DMD, CVPR 2024, and
    DMD2, NeurIPS 2024; Zhang et al., DisBack, 2024.

    Args:
        student: The generator.
        teacher: The teacher.
        objective: The terms of the student: see `objectives`.
        critic: The critic, where a term needs one.
        derivative: Form of the term ``map``.
        step: Step in time of "bootstrap" and "finite", in (0, 1).
        noise: Range of the times at which the critic and the teacher see samples, in [0, 1].
        nodes: Teachers of the term ``match`` before the last one, which is ``teacher``: DisBack's
            way back from the student's first distribution.
        interval: Steps with each of them.

    Raises:
        ConfigError: An unknown derivative, a step outside (0, 1), or a network whose prediction
            cannot give whole jumps.
    """

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        objective: Objective,
        critic: Critic | None = None,
        *,
        derivative: Derivative = "bootstrap",
        step: float = 0.02,
        noise: tuple[float, float] = (0.02, 0.98),
        nodes: Sequence[Velocity] = (),
        interval: int = 1,
    ) -> None:
        super().__init__(student, objective, teacher)
        if derivative not in _DERIVATIVES:
            raise ConfigError(
                f"OneStep: unknown derivative {derivative!r}; {nearest(derivative, _DERIVATIVES)}"
            )
        if not 0 < step < 1 or not 0 <= noise[0] < noise[1] <= 1:
            raise ConfigError(
                f"OneStep: step must be in (0, 1) and noise a range in [0, 1], got {step} and "
                f"{noise}"
            )
        if "map" in objective.names and student.net.prediction in ("sample", "edm"):
            raise ConfigError(
                "OneStep: a network of prediction 'sample' or 'edm' repeats its input at the end "
                "of the path and cannot give whole jumps; distil it with dmd"
            )
        self.critic = critic
        self.nodes, self.interval = nn.ModuleList(Frozen(node) for node in nodes), interval
        self.derivative, self.step, self.noise = derivative, step, noise

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of the turn that is played."""
        if self.turn == "critic":
            return self._judged(batch, step)
        student: Any = self.student
        wanted = self.objective.at(step)
        terms: dict[str, tuple[Any, ...]] = {}
        if "map" in wanted:
            terms["map"] = getattr(self, f"_{self.derivative}")(student, batch)
        if "match" in wanted or "adversarial" in wanted:
            made = student(batch.noise, batch.condition)
            t, x = self._noised(made)
            if "match" in wanted:
                terms["match"] = (made, *self._estimates(x, t, batch.condition, step))
            if "adversarial" in wanted:
                terms["adversarial"] = (self._critic.judge(x, t, batch.condition),)
        if "regression" in wanted:
            pairs: Any = batch.pairs
            terms["regression"] = (student(pairs.noise, pairs.labels), pairs.values)
        return self.objective(step, terms)

    # --- distribution matching ------------------------------------------------------------------

    @property
    def _critic(self) -> Critic:
        assert self.critic is not None
        return self.critic

    @torch.no_grad()
    def _estimates(
        self, x: Tensor, t: Tensor, condition: Tensor | None, step: int
    ) -> tuple[Tensor, Tensor]:
        """Clean items that critic and teacher see in noised samples."""
        number = step // self.interval
        teacher: Any = self.nodes[number] if number < len(self.nodes) else self.teacher
        return (
            self._critic.net.denoise(x, t, condition), teacher.model.denoise(x, t, condition)
        )  # fmt: skip

    def _noised(self, made: Tensor) -> tuple[Tensor, Tensor]:
        times = times_like(made, *self.noise)
        t = spread(times, made)
        return times, (1 - t) * made + t * noise_like(made)

    def _judged(self, batch: Batch, step: int) -> Losses:
        """What the critic learns: the student's samples, and how they differ from real ones."""
        critic = self._critic
        with torch.no_grad():
            made = self.student(batch.noise, batch.condition)
        times, noise = times_like(made), noise_like(made)
        terms: dict[str, tuple[Any, ...]] = {
            "denoise": critic.net.target(made, noise, times, batch.condition)
        }
        if "discriminator" in self.objective.at(step):
            if batch.real is None:
                raise ConfigError("OneStep: the discriminator needs real items, got none")
            t, x = self._noised(torch.cat([made, batch.real]))
            both = None if batch.condition is None else batch.condition.repeat(2)
            terms["discriminator"] = tuple(critic.judge(x, t, both).chunk(2))
        return self.objective(step, terms)

    # --- flow maps ------------------------------------------------------------------------------

    def _bootstrap(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """One DDIM step of the teacher in ``y = z - F``, from the student's own estimate."""
        z, c = batch.noise, batch.condition
        teacher: Any = self.teacher
        delta = spread(times_like(z).clamp_min(1e-4), z)
        before = (delta - self.step).clamp_min(0)
        with torch.no_grad():
            y = z - student.average(z, before.flatten(), c)
            clean = teacher.model.denoise(before * y + (1 - before) * z, (1 - before).flatten(), c)
            ratio = before * (1 - delta) / ((1 - before) * delta)
            target = z - ratio * y - (1 - ratio) * clean
        return self._scaled(student, student.average(z, delta.flatten(), c), target, delta)

    def _finite(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """The derivative by two more evaluations, within [0, 1]."""
        z, c = batch.noise, batch.condition
        delta = times_like(z)
        after, before = (delta + self.step).clamp_max(1), (delta - self.step).clamp_min(0)
        with torch.no_grad():
            difference = student.average(z, after, c) - student.average(z, before, c)
            slope = difference / spread(after - before, z)
        average = student.average(z, delta, c)
        return self._residual(student, batch, delta, average, slope)

    def _jvp(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """The derivative itself."""
        z, c = batch.noise, batch.condition
        delta = times_like(z)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward differentiation
            found: Any = torch.func.jvp(
                lambda d: student.average(z, d, c), (delta,), (torch.ones_like(delta),)
            )
        return self._residual(student, batch, delta, *found)

    @torch.no_grad()
    def _wanted(self, batch: Batch, delta: Tensor, average: Tensor, slope: Tensor) -> Tensor:
        """``u(z - delta F, 1 - delta) - delta dF/ddelta``."""
        assert self.teacher is not None
        d = spread(delta, average)
        u: Tensor = self.teacher(batch.noise - d * average, 1 - delta, batch.condition)
        return u - d * slope

    def _residual(
        self, student: Student, batch: Batch, delta: Tensor, average: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = self._wanted(batch, delta, average, slope)
        return self._scaled(student, average, wanted, spread(delta, average))

    def _scaled(
        self, student: Student, average: Tensor, wanted: Tensor, delta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """In units of what the network predicts: noise is ``delta F`` and what is known."""
        factor = delta if student.net.prediction == "epsilon" else 1.0
        return factor * average, factor * wanted


def objectives(
    *,
    flow_map: float = 0.0,
    match: Any = 0.0,
    adversarial: float = 0.0,
    regression: float = 0.0,
) -> tuple[Objective, Objective]:
    """The terms of student and critic.

    Args:
        flow_map: Weight of the flow map.
        match: Weight of distribution matching; may be a function of the step.
        adversarial: Weight of the adversarial term.
        regression: Weight of the regression on pairs.
    """
    weights: dict[str, Any] = {
        "map": (flow_map, F.mse_loss), "match": (match, matching_loss),
        "adversarial": (adversarial, generator_loss), "regression": (regression, F.mse_loss),
    }  # fmt: skip
    student = {name: term for name, term in weights.items() if term[0] != 0}
    critic: dict[str, Any] = {"denoise": (1.0, F.mse_loss)}
    if adversarial:
        critic["discriminator"] = (1.0, discriminator_loss)
    return Objective(student), Objective(critic)


def players(critic: Objective, *, updates: int = 5, lr: float | None = None) -> Stage:
    """Critic and student in turns: ``updates`` of the critic, then one of the student.

    Source: Yin et al., DMD2, NeurIPS 2024: two time scales, 5 updates of the critic.

    Args:
        critic: The terms of the critic: see `objectives`.
        updates: Updates of the critic for each of the student.
        lr: Learning rate of the critic; that of the student by default.
    """
    turns = (
        Turn("critic", ["critic.*"], critic, lr=lr, times=updates),
        Turn("student", ["student.*"]),
    )
    return Stage(share=1.0, turns=turns)
