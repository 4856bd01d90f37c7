"""Training by denoising: teachers, DisBack's nodes, and the start of students that are smaller."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from potstill.core import Distiller, Losses, Objective
from potstill.flow.methods.draws import Batch, noise_like, times_like
from potstill.flow.student import Generator
from potstill.flow.teachers.teacher import Teacher
from potstill.flow.teachers.velocity import Velocity, spread

__all__ = ["Degrading", "Denoising", "ScoreMatching"]


class Denoising(Distiller):
    """Train a network by denoising real items.

    Term: ``denoise`` (its prediction of noised items, and what it should be).

    Args:
        student: The network, as a velocity.
        drop: Share of the items whose class is replaced by ``null``.
        null: Label that stands for no class.
    """

    def __init__(self, student: Velocity, drop: float = 0.0, null: int | None = None) -> None:
        super().__init__(student, Objective(denoise=(1.0, F.mse_loss)))
        self.drop, self.null = drop, null

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of a batch of real items."""
        student: Any = self.student
        real: Any = batch.real
        condition = batch.condition
        if condition is not None and self.null is not None:
            hidden = times_like(real) < self.drop
            condition = torch.where(hidden, self.null, condition)
        times = times_like(real)
        return self.objective(
            step, denoise=student.target(real, noise_like(real), times, condition)
        )


class Degrading(Distiller):
    """Train a copy of the teacher on the samples of a generator: the way DisBack goes back.

    Term: ``denoise`` (its prediction of noised samples, and what it should be).

    Source: Zhang et al., DisBack, 2024, stage 1.

    Args:
        student: The copy.
        generator: The generator, as it is before it learns; it stays so.
    """

    def __init__(self, student: Velocity, generator: Generator) -> None:
        super().__init__(student, Objective(denoise=(1.0, F.mse_loss)), generator)

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of a batch of noise."""
        student: Any = self.student
        assert self.teacher is not None
        made = self.teacher(batch.noise, batch.condition)
        times = times_like(made)
        return self.objective(
            step, denoise=student.target(made, noise_like(made), times, batch.condition)
        )


class ScoreMatching(Distiller):
    """Make a smaller network say what the teacher says, where it cannot have its weights.

    Term: ``velocity`` (of the student and of the teacher, of the same noised items).

    Source: Song et al., Multi-student Diffusion Distillation, 2024: teacher score matching.

    Args:
        student: The smaller network.
        teacher: The teacher.
    """

    def __init__(self, student: Velocity, teacher: Teacher) -> None:
        super().__init__(student, Objective(velocity=(1.0, F.mse_loss)), teacher)

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of a batch of real items, or of items that the teacher made."""
        real: Any = batch.real
        assert self.teacher is not None
        times = times_like(real)
        t = spread(times, real)
        x = (1 - t) * real + t * noise_like(real)
        pair = (self.student(x, times, batch.condition), self.teacher(x, times, batch.condition))
        return self.objective(step, velocity=pair)
