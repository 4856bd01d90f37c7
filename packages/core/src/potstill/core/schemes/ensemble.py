"""Several teachers as one, and a discriminator that tells student from teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core.errors import ConfigError, ShapeError

__all__ = ["Discriminator", "Ensemble"]


class Ensemble(nn.Module):
    """Teachers averaged in probability space; the output is ``log`` of the mean, that is, logits.

    Source: Shen and Savvides, MEAL V2, 2020: the target is the mean of the teachers' softmax
    outputs (averaging logits gives another target). Log-probabilities are logits, so the ensemble
    is a teacher for every criterion; MEAL V2 uses `soft_ce` and no labels.

    Args:
        teachers: Modules of the same input and classes.
        weights: Shares of the teachers, by default equal; normalized to 1.
        T: Temperature at which they are averaged.

    Raises:
        ConfigError: No teacher, or weights that do not fit.

    Example:
        >>> teacher = nn.Linear(4, 3)
        >>> x = torch.ones(2, 4)
        >>> twice = Ensemble([teacher, teacher])(x)
        >>> bool(torch.allclose(twice, torch.log_softmax(teacher(x), -1)))
        True
    """

    weights: Tensor

    def __init__(
        self,
        teachers: Iterable[nn.Module],
        weights: Sequence[float] | None = None,
        *,
        T: float = 1.0,
    ) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        given = [1.0] * len(self.teachers) if weights is None else list(weights)
        if (
            not self.teachers
            or len(given) != len(self.teachers)
            or min(given) < 0
            or not sum(given)
        ):
            raise ConfigError(
                f"Ensemble: one weight >= 0 for each teacher is needed, got {given} for "
                f"{len(self.teachers)} teachers"
            )
        if not T > 0:
            raise ConfigError(f"Ensemble: T must be > 0, got {T}")
        self.register_buffer("weights", torch.tensor(given) / sum(given))
        self.T = T

    def forward(self, *inputs: Any) -> Float[Tensor, "*rows classes"]:
        """Log of the mean probability, [..., C]."""
        logs = [
            torch.log_softmax(teacher(*inputs) / self.T, -1) + weight.log()
            for teacher, weight in zip(self.teachers, self.weights, strict=True)
            if weight > 0
        ]
        return torch.stack(logs).logsumexp(0) * self.T


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return -upstream


class Discriminator(nn.Module):
    """A criterion that learns to tell the student's logits from the teacher's.

    Source: after Shen and Savvides, MEAL V2, 2020; layers as in the authors' code: 1x1
    convolutions C -> C/2 -> C/4 -> 2 with a ReLU after each, also the last, binary cross-entropy
    against (1, 0) for the student and (0, 1) for the teacher. The gradient to the student is
    reversed (Ganin and Lempitsky, 2015), so that one step of one optimizer trains the
    discriminator to tell and the student to be taken for the teacher.

    Args:
        num_classes: C, at least 4.
        adversarial: False lets the gradient through as it is: the student then helps to be told.

    Raises:
        ConfigError: Fewer than 4 classes.
    """

    def __init__(self, num_classes: int, *, adversarial: bool = True) -> None:
        super().__init__()
        if num_classes < 4:
            raise ConfigError(f"Discriminator: num_classes must be at least 4, got {num_classes}")
        self.adversarial = adversarial
        # A 1x1 convolution of a vector is a linear layer.
        self.layers = nn.Sequential(
            nn.Linear(num_classes, num_classes // 2),
            nn.ReLU(),
            nn.Linear(num_classes // 2, num_classes // 4),
            nn.ReLU(),
            nn.Linear(num_classes // 4, 2),
            nn.ReLU(),
        )

    def forward(self, z_s: Tensor, z_t: Tensor, target: Tensor | None = None) -> Tensor:
        """Binary cross-entropy over both outputs; ``target`` is ignored."""
        if z_s.shape != z_t.shape:
            raise ShapeError(
                f"Discriminator: z_t must be {list(z_s.shape)} like z_s, got {list(z_t.shape)}"
            )
        z_s = _Reverse.apply(z_s) if self.adversarial else z_s
        told = self.layers(torch.cat([z_s, z_t.detach()]))
        own = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=told.device, dtype=told.dtype)
        return F.binary_cross_entropy_with_logits(told, own.repeat_interleave(len(z_s), 0))
