"""The plain scheme: a fixed teacher, logits to logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from potstill.core.errors import ObjectiveError
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Losses
from potstill.core.vocabulary.output import tensor_of

__all__ = ["LogitDistiller"]


class LogitDistiller(Distiller):
    """Inputs with labels: the term ``task`` gets ``(z_s, y)``, every other ``(z_s, z_t, y)``.

    That is the signature of all criteria on logits, so any of them can be a term. A batch is
    ``(x, y)``, or ``(x, y, z_t)`` with the teacher's logits in it (from a `TeacherCache`, say). The
    teacher runs only where a term needs it. Models may return what `tensor_of` takes logits from (a
    ``ModelOutput``, a mapping with ``logits``); wrap others: ``TensorOutput(model, output=...)``.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from potstill.core import Objective
        >>> from potstill.core.criteria import kd
        >>> distiller = LogitDistiller(
        ...     torch.nn.Linear(4, 3),
        ...     Objective(task=(0.1, F.cross_entropy), kd=(0.9, kd)),
        ...     teacher=torch.nn.Linear(4, 3),
        ... )
        >>> sorted(distiller((torch.zeros(2, 4), torch.tensor([0, 2])), step=0).terms)
        ['kd', 'task']
    """

    def forward(self, batch: Any, step: int) -> Losses:
        """Route a batch ``(x, y)`` or ``(x, y, z_t)``."""
        x, y, *cached = batch
        return self.compare(step, x, y, cached[0] if cached else None)

    def compare(self, step: int, x: Any, y: Tensor, z_t: Tensor | None = None) -> Losses:
        """Evaluate the objective for inputs and targets that both models see."""
        z_s = tensor_of(self.student(x))
        names = self.objective.at(step)
        tensors: dict[str, tuple[Tensor, ...]] = {"task": (z_s, y)} if "task" in names else {}
        others = [name for name in names if name != "task"]
        if others and z_t is None:
            z_t = self.reference(x, step)
        return self.objective(step, tensors | {name: (z_s, z_t, y) for name in others})

    def reference(self, x: Any, step: int) -> Tensor:
        """Logits of the teacher for ``x``."""
        if self.teacher is None:
            raise ObjectiveError(
                f"{type(self).__name__}: a term other than 'task' needs a teacher, got None; pass "
                "one, or batches (x, y, z_t)"
            )
        return tensor_of(self.teacher(x))
