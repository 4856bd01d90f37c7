"""TGeo-KD as it is meant: the ratio of distillation learned by a real bilevel step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from potstill.core.criteria import tgeo, tgeo_state
from potstill.core.engine.unrolled import unrolled
from potstill.core.errors import ConfigError
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Losses, Objective

__all__ = ["TrilateralFusion"]


class _Mixture(nn.Module):
    """The lower loss as a criterion; owns the ratio network."""

    def __init__(self, ratio: nn.Module, state: Callable[..., Tensor], T: float) -> None:
        super().__init__()
        self.ratio, self.state, self.T = ratio, state, T

    def forward(
        self, z_s: Tensor, z_t: Tensor, labels: Tensor, learn_ratio: bool = False
    ) -> Tensor:
        a = self.ratio(self.state(z_s, z_t, labels))
        return tgeo(z_s, z_t, labels, a if learn_ratio else a.detach(), T=self.T)


class TrilateralFusion(Distiller):
    """The student learns from the mixture; the ratio from what the mixture does on validation data.

    Source: after Hu et al., TGeo-KD, ICLR 2024. Lower loss: `tgeo`, for the student. Upper loss:
    ``CE(validation; theta')`` with ``theta' = theta - inner_lr grad_theta L(theta; a_w)``, one step
    of the student unrolled, differentiated with respect to the ratio network's w alone (first order
    in w). Both losses are terms of one objective, so `fit` trains student and network together.
    Costs two more passes of the student and a double backward a step.

    Args:
        student: A classifier; buffers (batch statistics) are not touched by the unrolled step.
        teacher: Gives logits.
        ratio: State -> ratios [N] in (0, 1), e.g. `RatioNet`.
        inner_lr: Length of the unrolled step.
        T: Temperature.
        state: `tgeo_state`, or `tgeo_reduced_state` for many classes.

    Raises:
        ConfigError: inner_lr is not positive.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        ratio: nn.Module,
        *,
        inner_lr: float,
        T: float = 1.5,
        state: Callable[..., Tensor] = tgeo_state,
    ) -> None:
        if not inner_lr > 0:
            raise ConfigError(f"TrilateralFusion: inner_lr must be > 0, got {inner_lr}")
        mixture = _Mixture(ratio, state, T)
        objective = Objective(student=(1.0, mixture), validation=(1.0, F.cross_entropy))
        super().__init__(student, objective, teacher)
        self.inner_lr = inner_lr

    @property
    def mixture(self) -> nn.Module:
        """The lower loss, with the ratio network in it."""
        return self.objective.criteria["student"]

    def forward(self, batch: Any, step: int) -> Losses:
        """Route a batch ``((x, y), (x_val, y_val))``."""
        (x, y), (x_val, y_val) = batch
        assert self.teacher is not None
        z_t = self.teacher(x)
        return self.objective(
            step,
            student=(self.student(x), z_t, y),
            validation=(self.after_step(x, y, z_t, x_val), y_val),
        )

    def after_step(self, x: Any, y: Tensor, z_t: Tensor, x_val: Any) -> Tensor:
        """Validation logits of the student after one step, differentiable in the ratio alone."""
        buffers = {name: value.clone() for name, value in self.student.named_buffers()}
        theta = unrolled(
            self.student,
            lambda forward: self.mixture(forward(x), z_t, y, learn_ratio=True),
            lr=self.inner_lr,
        )
        return functional_call(self.student, {**theta, **buffers}, (x_val,))
