"""Training: source, distiller and export of ``potstill NAME train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core import Batches, Distiller, Job, Losses, Objective, Validation, generator
from potstill.NAME.config import Config
from potstill.NAME.models import Network

__all__ = ["NetToNet", "Train"]


class NetToNet(Distiller):
    """Match the outputs of a teacher.

    Term: ``output`` (outputs of student and teacher, [rows 3] each).
    """

    def forward(self, batch: Tensor, step: int) -> Losses:
        """Losses of a batch of inputs, [rows 4]."""
        assert self.teacher is not None
        return self.objective(step, output=(self.student(batch), self.teacher(batch)))


class Train(Job[Config]):
    """Distil a wide network into a narrow one on random inputs.

    Leaves ``student/``, a folder for `Network.from_pretrained`, and ``error`` in ``result.json``.
    """

    def source(self) -> Batches:
        """Random inputs of a fixed seed."""
        training = self.config.training
        return Batches(list(inputs("train", training.seed)), training.batch)

    def distiller(self) -> NetToNet:
        """A student with the outputs of a teacher of 256 hidden units as its target."""
        self.teacher, self.student = Network(256), Network(self.config.width)
        return NetToNet(self.student, Objective(output=(1.0, F.mse_loss)), self.teacher)

    def validation(self) -> Validation:
        """The best weights by the error on inputs that training did not see."""
        return Validation(lambda student: -self.error(student), every=100)

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Mapping[str, Any]:
        """Write the student, and how far it is from its teacher."""
        error = self.error(self.student)
        self.student.save_pretrained(folder / "student", metrics={"error": error})
        return {"error": error}

    @torch.no_grad()
    def error(self, student: torch.nn.Module) -> float:
        """Mean squared difference to the teacher's outputs on inputs held out."""
        device = next(student.parameters()).device
        x = inputs("test", self.config.training.seed).to(device)
        return float(F.mse_loss(student(x), self.teacher.to(device)(x)))


def inputs(purpose: str, seed: int) -> Tensor:
    """512 rows of random inputs, [512 4]."""
    return torch.randn(512, 4, generator=generator(purpose, seed))
