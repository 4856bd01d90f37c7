"""The distiller: routes tensors of student and teacher to the terms of an objective."""

from __future__ import annotations

from typing import Any

from torch import nn

from potstill.core.errors import ConfigError
from potstill.core.vocabulary.objective import Losses, Objective
from potstill.core.vocabulary.teacher import Frozen

__all__ = ["Distiller"]


class Distiller(nn.Module):
    """Student, objective and optional teacher, with one method to write.

    Args:
        student: Module to train and later deploy.
        objective: The named terms.
        teacher: A module, frozen here; or None where the teacher is a column of the data.

    Attributes:
        progress: Share of the whole budget that is used up, in [0, 1]: `fit` sets it before each
            step, for weights that follow a budget in seconds, where no step is known beforehand.
        turn: Name of the turn that is being played, where a stage has several; else empty.

    Raises:
        ConfigError: Student and teacher share parameters that would train.

    Example:
        >>> import torch.nn.functional as F
        >>> class LogitsToLogits(Distiller):
        ...     def forward(self, batch, step):
        ...         return self.objective(step, output=(self.student(batch), self.teacher(batch)))
        >>> distiller = LogitsToLogits(
        ...     nn.Linear(4, 2), Objective(output=(1.0, F.mse_loss)), teacher=nn.Linear(4, 2)
        ... )
        >>> sorted(distiller.state_dict())
        ['student.bias', 'student.weight']
    """

    progress: float = 0.0
    turn: str = ""

    def __init__(
        self, student: nn.Module, objective: Objective, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        if teacher is not None:
            _check_apart(type(self).__name__, student, teacher)
        self.student = student
        self.objective = objective
        self.teacher = None if teacher is None else Frozen(teacher)

    def forward(self, batch: Any, step: int) -> Losses:
        """Say which tensors go to which term: the one method that a domain writes.

        Args:
            batch: Whatever the batches yield, already on the right device.
            step: Step of the current stage, from 0.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: write forward(self, batch, step) -> Losses, ending in "
            "`return self.objective(step, name=(student, teacher, ...))`"
        )


def _check_apart(name: str, student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student that would be frozen with its teacher."""
    model = teacher.model if isinstance(teacher, Frozen) else teacher
    held = {id(parameter) for parameter in model.parameters()}
    shared = [n for n, p in student.named_parameters() if id(p) in held and p.requires_grad]
    if model is student or shared:
        raise ConfigError(
            f"{name}: student and teacher must not share parameters that train, got "
            f"{'the same module' if model is student else ', '.join(shared[:3])}; "
            "pass copy.deepcopy(teacher)"
        )
