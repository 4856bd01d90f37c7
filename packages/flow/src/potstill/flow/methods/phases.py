"""Distribution matching in phases: each expert ends at a noise level of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core import ConfigError, Distiller, Losses, Objective, Stage, Turn
from potstill.flow.methods.critic import Critic, matching_loss
from potstill.flow.methods.draws import Batch, noise_like, times_like
from potstill.flow.student import Phased
from potstill.flow.teachers.teacher import Teacher
from potstill.flow.teachers.velocity import spread

__all__ = ["Phases", "phased_target", "phases"]


def phased_target(
    x: Tensor, noise: Tensor, t: Tensor | float, end: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise items at level ``end`` further to t, and say what velocity a critic must learn there.

    With ``alpha = (1 - t) / (1 - end)`` and ``beta^2 = t^2 - alpha^2 end^2``:
    ``x_t = alpha x + beta e``, whose velocity has the expectation that
    ``-x / (1 - end) + (t + (1 - t) end^2 / (1 - end)^2) e / beta`` has given x_t; ``e - x`` has
    not, unless ``end`` is 0.

    Source: Fan et al., Phased DMD, 2025.

    Args:
        x: Items at level ``end``, [items ...].
        noise: Noise e, as ``x``.
        t: Time of each, in (end, 1].
        end: Level of the items, in [0, 1).

    Returns:
        Noised items, the target, and beta, which both shrink where the target's variance grows.
    """
    t = spread(t, x)
    alpha = (1 - t) / (1 - end)
    beta = (t.square() - alpha.square() * end**2).clamp_min(1e-8).sqrt()
    slope = (t + (1 - t) * end**2 / (1 - end) ** 2) / beta
    return alpha * x + beta * noise, slope * noise - x / (1 - end), beta


class Phases(Distiller):
    """Phased DMD: in each phase one expert, matched at the noise levels above its end alone.

    Terms: ``match`` (see `matching_loss`), and in the turns of the critic ``denoise`` (its velocity
    and that of `phased_target`, both times beta, which keeps the expectation).

    Source: Fan et al., Phased DMD, 2025.

    Args:
        student: The experts.
        teacher: The teacher.
        critic: The critic, which goes on from phase to phase.
        naive: Take ``e - x`` for the critic's target, which is wrong; to compare with.
        margin: Least distance of a time from the end of its phase, and from 1.

    Raises:
        ConfigError: A margin that leaves nothing of a phase.
    """

    def __init__(
        self,
        student: Phased,
        teacher: Teacher,
        critic: Critic,
        *,
        naive: bool = False,
        margin: float = 0.02,
    ) -> None:
        super().__init__(student, Objective(match=(1.0, matching_loss)), teacher)
        if not 0 < margin < (1 - max(student.levels[1:])) / 2:
            raise ConfigError(f"Phases: margin must be positive and small, got {margin}")
        self.critic, self.naive, self.margin = critic, naive, margin

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of the turn that is played, whose name ends in the number of its phase."""
        student: Any = self.student
        player, _, number = self.turn.partition(" ")
        phase, end = int(number), student.levels[int(number) + 1]
        with torch.no_grad():
            x = student.until(phase, batch.noise, batch.condition)
        if player == "critic":
            with torch.no_grad():
                x = student.step(phase, x, batch.condition)
            return self._judged(x, end, batch, step)
        made = student.step(phase, x, batch.condition)
        t = times_like(made, end + self.margin, 1 - self.margin)
        with torch.no_grad():
            teacher: Any = self.teacher
            noised, _, _ = phased_target(made, noise_like(made), t, end)
            fake = self.critic.net.denoise(noised, t, batch.condition)
            real = teacher.model.denoise(noised, t, batch.condition)
        return self.objective(step, match=(made, fake, real))

    def _judged(self, x: Tensor, end: float, batch: Batch, step: int) -> Losses:
        t, noise = times_like(x, end + self.margin, 1 - self.margin), noise_like(x)
        noised, target, beta = phased_target(x, noise, t, end)
        if self.naive:
            target = noise - x
        velocity = self.critic.net(noised, t, batch.condition)
        return self.objective(step, denoise=(beta * velocity, beta * target))


def phases(
    student: Phased, *, updates: int = 5, lr: float | None = None, shares: Sequence[float] = ()
) -> list[Stage]:
    """A stage for each expert, with a critic in turns.

    Args:
        student: The experts.
        updates: Updates of the critic for each of the student.
        lr: Learning rate of the critic.
        shares: Share of the budget of each phase; equal ones by default.
    """
    count, denoise = len(student.experts), Objective(denoise=(1.0, F.mse_loss))
    return [
        Stage(
            share=share,
            turns=(
                Turn(f"critic {k}", ["critic.*"], denoise, lr=lr, times=updates),
                Turn(f"student {k}", [f"student.experts.{k}.*"]),
            ),
        )
        for k, share in enumerate(shares or [1 / count] * count)
    ]  # fmt: skip
