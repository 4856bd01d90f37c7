"""The trainings of the commands: from labels alone, and by an arm from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from potstill.audit.training.arms import ArmDistiller
from potstill.audit.training.networks import Network
from potstill.core import Objective, fit, seed_all
from potstill.core.images import ResidentImages
from potstill.core.schemes import LogitDistiller

__all__ = ["Learning"]


@dataclass(frozen=True)
class Learning:
    """How the networks of a bench are made and trained: all of it through `potstill.core.fit`.

    Attributes:
        classes: Number of classes.
        teacher: Widths of the teacher's layers.
        student: Widths of the student's layers.
        kind: Linear layers or convolutions.
        steps: Steps of every training; None where ``fit`` has another budget.
        batch: Images of a step.
        lr: Learning rate.
        fit: What trains; a job passes its own.
    """

    classes: int
    teacher: Sequence[int] = (96, 96)
    student: Sequence[int] = (24, 24)
    kind: Literal["mlp", "cnn"] = "mlp"
    steps: int | None = 300
    batch: int = 64
    lr: float = 3e-3
    fit: Callable[..., Any] = field(default_factory=lambda: partial(fit, progress=False))

    def train_teacher(self, x: Tensor, y: Tensor, seed: int) -> Network:
        """A teacher from labels."""
        return self._labels(self._network(self.teacher, x, "teacher", seed), x, y, seed)

    def train_student(self, x: Tensor, y: Tensor, seed: int) -> Network:
        """A student from labels alone: the control without a teacher."""
        return self._labels(self._network(self.student, x, "student", seed), x, y, seed)

    def arm(self, name: str) -> Callable[[nn.Module, Tensor, Tensor, int], Network]:
        """A function ``(teacher, x, y, seed) -> student`` that distils by an arm of `ARMS`."""
        return partial(self._distil, name)

    def _distil(self, name: str, teacher: nn.Module, x: Tensor, y: Tensor, seed: int) -> Network:
        student = self._network(self.student, x, "student", seed)
        distiller = ArmDistiller(student, teacher, name, x[:2], steps=self.steps or 300)
        self._fit(distiller, x, y, seed)
        return student

    def _network(self, widths: Sequence[int], x: Tensor, *seed: int | str) -> Network:
        seed_all(*seed)
        channels, height, width = x.shape[1:]
        return Network((channels, height, width), self.classes, tuple(widths), self.kind)

    def _labels(self, network: Network, x: Tensor, y: Tensor, seed: int) -> Network:
        self._fit(LogitDistiller(network, Objective(task=(1.0, F.cross_entropy))), x, y, seed)
        return network

    def _fit(
        self, distiller: LogitDistiller | ArmDistiller, x: Tensor, y: Tensor, seed: int
    ) -> None:
        batches = ResidentImages(x, y, min(self.batch, len(x)), shift=0, flip=False)
        self.fit(distiller, batches, steps=self.steps, lr=self.lr, seed=seed)
