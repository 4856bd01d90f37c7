"""Self-distillation: the student of one generation teaches the next."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core.criteria import kd
from potstill.core.errors import ConfigError
from potstill.core.schemes.offline import LogitDistiller
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Criterion, Objective

__all__ = ["Generation", "optimal_mixing", "self_distill"]


class Generation(NamedTuple):
    """A student, and the share alpha of the labels it was trained with."""

    student: nn.Module
    alpha: float


def optimal_mixing(target: Tensor, u: Tensor, v: Tensor, *, clip: bool = False) -> float:
    """The share of labels that is best on validation data, in closed form.

    Source: Borup and Andersen, Even your Teacher Needs Guidance, NeurIPS 2021, for kernel ridge
    regression, where predictions are affine in alpha: ``alpha* = <y - v, u - v> / ||u - v||^2``
    minimizes ``||y - alpha u - (1 - alpha) v||^2``. It may lie outside [0, 1].

    Args:
        target: Validation targets, any shape.
        u: Predictions of the student trained on labels alone.
        v: Predictions of the student trained on the teacher alone.
        clip: Confine the result to [0, 1].

    Raises:
        ConfigError: u = v, so that alpha does not matter.

    Example:
        >>> y = torch.tensor([1.0, 0.0])
        >>> optimal_mixing(y, u=torch.tensor([1.0, 0.0]), v=torch.tensor([0.0, 0.0]))
        1.0
    """
    gap = (u - v).double().flatten()
    square = float(gap @ gap)
    if not square > 0:
        raise ConfigError("optimal_mixing: u must differ from v, got equal predictions")
    alpha = float((target - v).double().flatten() @ gap) / square
    return min(max(alpha, 0.0), 1.0) if clip else alpha


def self_distill(
    make_student: Callable[[], nn.Module],
    train: Callable[[Distiller], Any],
    *,
    generations: int,
    alpha: float | Callable[[int], float] | Literal["auto"] = 0.5,
    task: Criterion = F.cross_entropy,
    criterion: Criterion = kd,
    init_from: Literal["scratch", "teacher"] = "scratch",
    validation: tuple[Any, Tensor] | None = None,
    clip: bool = True,
) -> list[Generation]:
    """Train students one after another, each on labels and on its predecessor.

    Source: Borup and Andersen, NeurIPS 2021; Furlanello et al., Born-Again Networks, ICML 2018.
    ``L_k = alpha task(z_k, y) + (1 - alpha) criterion(z_k, z_{k-1})``; the first sees labels only.

    Args:
        make_student: Gives a new student.
        train: Trains a `LogitDistiller`: ``lambda d: fit(d, batches, steps=1000)``.
        generations: Number of students, at least 1.
        alpha: Share of the labels; a function of the generation; or ``"auto"``, the estimate of
            `optimal_mixing` from two extra students a generation (alpha 1 and 0).
        task: Criterion on labels.
        criterion: Criterion on the predecessor.
        init_from: Initialise each student from scratch or from its predecessor.
        validation: ``(x, y)`` for ``"auto"``; softmax outputs are compared with one-hot labels.
        clip: Keep ``"auto"`` in [0, 1] (a deep network is not affine in alpha).

    Returns:
        The generations, oldest first.

    Raises:
        ConfigError: Options that contradict each other.
    """
    if generations < 1:
        raise ConfigError(f"self_distill: generations must be at least 1, got {generations}")
    if alpha == "auto" and validation is None:
        raise ConfigError('self_distill: alpha="auto" needs validation=(x, y), got None')

    def descend(parent: nn.Module | None, share: float) -> nn.Module:
        if parent is None or init_from == "scratch":
            student = make_student()
        else:
            student = copy.deepcopy(parent).requires_grad_()
        terms: dict[str, Any] = {"task": (share, task)}
        if parent is not None:
            terms["teacher"] = (1 - share, criterion)
        train(LogitDistiller(student, Objective(terms), copy.deepcopy(parent)))
        return student

    line = [Generation(descend(None, 1.0), 1.0)]
    for index in range(1, generations):
        parent = line[-1].student
        if alpha == "auto":
            assert validation is not None
            x, y = validation
            u, v = (_probabilities(descend(parent, end), x) for end in (1.0, 0.0))
            share = optimal_mixing(F.one_hot(y, u.shape[-1]).to(u), u, v, clip=clip)
        else:
            share = alpha(index) if callable(alpha) else float(alpha)
        line.append(Generation(descend(parent, share), share))
    return line


@torch.no_grad()
def _probabilities(model: nn.Module, x: Any) -> Tensor:
    was_training = model.training
    p = torch.softmax(model.eval()(x), -1)
    model.train(was_training)
    return p
