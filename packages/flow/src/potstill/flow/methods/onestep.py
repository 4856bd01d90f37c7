"""One-step distillation: flow maps (BOOT, FreeFlow) and distribution matching (DMD, DMD2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import ConfigError, Distiller, Frozen, Losses, Objective, Stage, Turn
from potstill.flow.methods.critic import (
    Critic,
    discriminator_loss,
    generator_loss,
    matching_loss,
)
from potstill.flow.methods.draws import Batch, noised
from potstill.flow.methods.maps import Derivative, FlowMap
from potstill.flow.student import Student
from potstill.flow.teachers.teacher import Teacher
from potstill.flow.teachers.velocity import Velocity

__all__ = ["OneStep", "objectives", "players"]


class OneStep(Distiller):
    """A teacher's path in one evaluation; which terms have weight is the method.

    Terms: ``map`` (the student's mean velocity, and what it should be): BOOT and FreeFlow.
    ``match`` (see `matching_loss`): DMD, and FreeFlow's correction. ``adversarial`` (scores): DMD2.
    ``regression`` (samples, the teacher's endpoints of the same noise): DMD. In the turn
    ``critic``: ``denoise`` (the critic's prediction of noised samples, and what it should be) and
    ``discriminator`` (scores of samples and of real items).

    The term ``map`` is `FlowMap`'s.

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
        if not 0 <= noise[0] < noise[1] <= 1:
            raise ConfigError(f"OneStep: noise must be a range in [0, 1], got {noise}")
        if "map" in objective.names and student.net.prediction in ("sample", "edm"):
            raise ConfigError(
                "OneStep: a network of prediction 'sample' or 'edm' repeats its input at the end "
                "of the path and cannot give whole jumps; distil it with dmd"
            )
        self.critic = critic
        self.nodes, self.interval = nn.ModuleList(Frozen(node) for node in nodes), interval
        self.map, self.noised = FlowMap(derivative, step), partial(noised, between=noise)

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of the turn that is played."""
        student: Any = self.student
        critic: Any = self.critic
        wanted = self.objective.at(step)
        if self.turn == "critic":
            with torch.no_grad():
                made = student(batch.noise, batch.condition)
            told = self.noised if "discriminator" in wanted else None
            return self.objective(step, critic.lessons(made, batch, told))
        terms: dict[str, tuple[Any, ...]] = {}
        if "map" in wanted:
            terms["map"] = self.map(student, self.teacher, batch)
        if "match" in wanted or "adversarial" in wanted:
            made = student(batch.noise, batch.condition)
            t, x = self.noised(made)
            if "match" in wanted:
                terms["match"] = (made, *self._estimates(x, t, batch.condition, step))
            if "adversarial" in wanted:
                terms["adversarial"] = (critic.judge(x, t, batch.condition),)
        if "regression" in wanted:
            pairs: Any = batch.pairs
            terms["regression"] = (student(pairs.noise, pairs.labels), pairs.values)
        return self.objective(step, terms)

    @torch.no_grad()
    def _estimates(
        self, x: Tensor, t: Tensor, condition: Tensor | None, step: int
    ) -> tuple[Tensor, Tensor]:
        """Clean items that critic and teacher see in noised samples."""
        number = step // self.interval
        critic: Any = self.critic
        teacher: Any = self.nodes[number] if number < len(self.nodes) else self.teacher
        return (
            critic.net.denoise(x, t, condition), teacher.model.denoise(x, t, condition)
        )  # fmt: skip


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
