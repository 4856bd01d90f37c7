"""The three phases as functions: a distiller, what trains in it, and `potstill.core.fit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from potstill.acm.layers.module import acms, note_phase, phases
from potstill.acm.training.criteria import Distance
from potstill.acm.training.distiller import EndToEnd, GatePretraining, ModuleDistillation
from potstill.core import Criterion, Distiller, NonFiniteError, Stage, Weight, cosine, fit

__all__ = ["distill", "finetune", "pretrain_gates", "run_phase"]

History = Sequence[dict[str, float]]

_TRAINABLE = {
    "distill": ("up", "bias", "down", "shift", "lift", "offset"),
    "gate": ("gate.*",),
    "finetune": (),
}
"""Parameters of the adaptive modules that train in each phase; none named: the whole student."""

_DEFAULTS = {"optimizer": partial(AdamW, weight_decay=0.0), "schedule": cosine(1e-3), "clip": 1.0}


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Any,
    *,
    distance: Distance = "mse",
    boosted: bool = False,
    lr: float = 1e-3,
    **options: Any,
) -> History:
    """Phase 1: `ModuleDistillation` through `potstill.core.fit`.

    Args:
        student: Adaptive model, from `acmize`; its gates are left as they are.
        teacher: The dense model; None when the batches are cached activations.
        batches: Batches for `fit`, of images, (images, labels), or cached activations.
        distance: Distance of `every_prefix`.
        boosted: Option of `every_prefix`.
        lr: Learning rate; AdamW without decay and a cosine to 1e-3 of it, as published.
        **options: Options of `fit`: ``steps=``, ``run=``, ``engine=``, ...

    Returns:
        The history of `fit`.

    Raises:
        ConfigError: No teacher and no cached activations; nothing adaptive.
    """
    distiller = ModuleDistillation(student, teacher, distance, boosted)
    return run_phase("distill", distiller, batches, lr=lr, **{**_DEFAULTS, **options})


def pretrain_gates(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Any,
    *,
    threshold: float = 0.8,
    inclusive: bool = False,
    lr: float = 1e-2,
    **options: Any,
) -> History:
    """Phase 2: `GatePretraining` through `potstill.core.fit`; arguments as of `distill`.

    Raises:
        ConfigError: No teacher and no cached activations; nothing adaptive.
    """
    distiller = GatePretraining(student, teacher, threshold, inclusive)
    return run_phase("gate", distiller, batches, lr=lr, **{**_DEFAULTS, **options})


def finetune(
    student: nn.Module,
    batches: Any,
    *,
    budget: float,
    task: Criterion = F.cross_entropy,
    weights: Mapping[str, Weight] | None = None,
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    lr: float = 1e-4,
    **options: Any,
) -> History:
    """Phase 3: `EndToEnd` through `potstill.core.fit`.

    Args:
        student: Adaptive model after phases 1 and 2; skipping them is a warning.
        batches: Batches for `fit`, of (images, labels).
        budget: Mean share of the learners' cost to aim at.
        task: Criterion of (logits, labels).
        weights: Weights of the terms; see `EndToEnd`.
        mix: Mixing of images and labels; see `EndToEnd`.
        lr: Learning rate.
        **options: Options of `fit`.

    Raises:
        ConfigError: A budget that is out of range, or that this model cannot reach.
        NonFiniteError: A loss is NaN or infinite; names the first module whose output is.
    """
    distiller = EndToEnd(student, budget, task, weights, mix)
    return run_phase("finetune", distiller, batches, lr=lr, **{**_DEFAULTS, **options})


def run_phase(
    name: str,
    distiller: Distiller,
    batches: Any,
    fit: Callable[..., History] = fit,
    **options: Any,
) -> History:
    """Train what trains in the phase ``name``, and note in the student that it has been run.

    Args:
        name: ``"distill"``, ``"gate"`` or ``"finetune"``.
        distiller: Distiller of the phase.
        batches: Batches for `fit`.
        fit: `potstill.core.fit`, or that of a job.
        **options: Options of `fit`.
    """
    student = distiller.student
    missing = [phase for phase in ("distill", "gate") if phase not in phases(student)]
    if "budget" in distiller.objective.names and missing:
        warnings.warn(
            f"finetune: the phases {' and '.join(missing)} have not been run on this student, "
            "which then starts from untrained learners or gates",
            stacklevel=3,
        )
    trainable = [
        f"student.{path}.{part}"
        for path, acm in acms(student).items()
        for part in _TRAINABLE[name]
        if getattr(acm, part, "gate") is not None
    ]
    stage = Stage(share=1.0, trainable=trainable or None)
    try:
        history = fit(distiller, batches, **{"stages": (stage,), **options})
    except NonFiniteError as error:
        found = distiller.broken_module() if isinstance(distiller, EndToEnd) else ""
        if not found:
            raise
        raise NonFiniteError(f"{error}; {found}") from error
    note_phase(student, name)
    return history
