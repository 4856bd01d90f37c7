"""The three phases: modules alone, gates alone, everything together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.acm import budget as budgets
from potstill.acm.criteria import (
    Distance,
    artificial_labels,
    budget_loss,
    diversity_loss,
    entropy_loss,
    every_prefix,
    gate_loss,
)
from potstill.acm.layers import ACM, record_gates, require_acms
from potstill.acm.surgery import sources
from potstill.core import (
    ConfigError,
    Criterion,
    Distiller,
    Losses,
    NonFiniteError,
    Objective,
    Weight,
    cosine,
    fit,
    tap,
)

__all__ = [
    "EndToEnd",
    "GatePretraining",
    "ModuleDistillation",
    "distill",
    "finetune",
    "phases",
    "pretrain_gates",
]

History = list[dict[str, float]]


class _ByModule(Distiller):
    """Modules trained on what the teacher's modules take and give, side by side."""

    def __init__(self, student: nn.Module, objective: Objective, teacher: nn.Module | None) -> None:
        super().__init__(student, objective, teacher)
        self.sources = sources(student)

    def readings(self, batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Input and output of the dense module behind each adaptive one, by its path.

        Args:
            batch: Images, (images, labels), or cached activations ``{path: (input, output)}``.
        """
        if isinstance(batch, Mapping):
            return {name: tuple(batch[name]) for name in self.sources}
        assert self.teacher is not None
        paths = {source.path for source in self.sources.values()}
        with tap(self.teacher, *paths, stop=True) as taps:
            self.teacher(budgets.images_of(batch))
        return {
            name: (taps[source.path].input, taps[source.path].output[..., source.columns])
            for name, source in self.sources.items()
        }


class ModuleDistillation(_ByModule):
    """Phase 1: each module learns the dense one's output from the dense one's input.

    No labels and no back-propagation through the network: the terms are the modules by path, and
    all of them train in parallel.

    Args:
        student: From `acmize`.
        teacher: The dense model; None when the batches are cached activations.
        distance: Of `every_prefix`.
        boosted: Of `every_prefix`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        distance: Distance = "mse",
        boosted: bool = False,
    ) -> None:
        names = require_acms(student, "ModuleDistillation")
        criterion = partial(every_prefix, distance=distance, boosted=boosted)
        super().__init__(student, Objective.each(names, 1.0, criterion), teacher)

    def forward(self, batch: Any, step: int) -> Losses:
        """Terms by path of the module."""
        return self.objective(
            step,
            {
                name: (_acm(self.student, name).prefixes(z), o)
                for name, (z, o) in self.readings(batch).items()
            },
        )


class GatePretraining(_ByModule):
    """Phase 2: each gate learns how many learners pay for a token, on the dense model's inputs.

    Args:
        student: After phase 1.
        teacher: The dense model; None when the batches are cached activations.
        threshold: Of `artificial_labels`.
        inclusive: Of `artificial_labels`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        threshold: float = 0.8,
        inclusive: bool = False,
    ) -> None:
        names = require_acms(student, "GatePretraining")
        super().__init__(student, Objective.each(names, 1.0, gate_loss), teacher)
        self.threshold = threshold
        self.inclusive = inclusive

    def forward(self, batch: Any, step: int) -> Losses:
        """Terms by path of the module."""
        terms = {}
        for name, (z, o) in self.readings(batch).items():
            acm = _acm(self.student, name)
            with torch.no_grad():
                labels = artificial_labels(
                    acm.prefixes(z), o, self.threshold, acm.least, self.inclusive
                )
            terms[name] = (acm.gate(z), labels, acm.least)
        return self.objective(step, terms)


class EndToEnd(Distiller):
    """Phase 3: task, budget, entropy and diversity, through gates that the task loss reaches.

    Args:
        student: In mode ``"gated"``; or with fixed modes, and then only the task trains.
        budget: Mean share of the learners' cost to aim at, in (0, 1].
        task: Criterion of (logits, labels).
        weights: Of the terms ``task``, ``budget``, ``entropy``, ``diversity``. Published: 1, 0.1,
            0.05, 0.05; a short training meets its budget with 1 for the second.

    Raises:
        ConfigError: The budget is not in (0, 1], or a weight has an unknown name.
    """

    WEIGHTS: Mapping[str, Weight] = {
        "task": 1.0, "budget": 1.0, "entropy": 0.05, "diversity": 0.05,
    }  # fmt: skip

    def __init__(
        self,
        student: nn.Module,
        budget: float,
        task: Criterion = F.cross_entropy,
        weights: Mapping[str, Weight] | None = None,
    ) -> None:
        modules = require_acms(student, "EndToEnd")
        budgets.check_budget("EndToEnd", budget)
        chosen = {**self.WEIGHTS, **(weights or {})}
        if unknown := set(chosen) - set(self.WEIGHTS):
            raise ConfigError(
                f"EndToEnd: weights must name {', '.join(self.WEIGHTS)}, got {sorted(unknown)}"
            )
        criteria: dict[str, Criterion] = {
            "task": task,
            "budget": partial(budget_loss, budget=budget),
            "entropy": entropy_loss,
            "diversity": diversity_loss,
        }
        gated = any(acm.mode == "gated" for acm in modules.values())
        names = list(criteria) if gated else ["task"]
        objective = Objective({name: (chosen[name], criteria[name]) for name in names})
        super().__init__(student, objective)
        self.budget = budget
        self._reached = False

    def forward(self, batch: Any, step: int) -> Losses:
        """Terms of a batch (images, labels)."""
        images, labels = batch
        with record_gates(self.student) as readings:
            logits = self.student(images)
        if not self._reached:
            low, _ = budgets.reachable(self.student, readings)
            budgets.check_budget("finetune", self.budget, low)
            self._reached = True
        terms: dict[str, tuple[Any, ...]] = {"task": (logits, labels)}
        if "budget" in self.objective.names:
            share = _over_ranks(budgets.share(readings))
            soft = [reading.soft for reading in readings.values()]
            terms |= {"budget": (share,), "entropy": (soft,), "diversity": (share,)}
        losses: Losses = self.objective(step, terms)
        if not bool(losses.total.isfinite()):
            name_the_culprit(self.student, images, step)
        return losses


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
        student: From `acmize`; its gates are left as they are.
        teacher: The dense model.
        batches: As of `fit`; batches of images, (images, labels), or cached activations.
        distance: Of `every_prefix`.
        boosted: Of `every_prefix`.
        lr: Learning rate; AdamW without decay and a cosine to 1e-3 of it, as published.
        **options: Of `fit`: ``steps=``, ``run=``, ``engine=``, ...

    Returns:
        The history of `fit`.

    Raises:
        ConfigError: No teacher and no cached activations; nothing adaptive.
    """
    _needs_teacher("distill", teacher, batches)
    distiller = ModuleDistillation(student, teacher, distance, boosted)
    history = _fit(distiller, batches, lr, lambda name: ".gate." not in name, options)
    _note_phase(student, "distill")
    return history


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
    _needs_teacher("pretrain_gates", teacher, batches)
    distiller = GatePretraining(student, teacher, threshold, inclusive)
    history = _fit(distiller, batches, lr, lambda name: ".gate." in name, options)
    _note_phase(student, "gate")
    return history


def finetune(
    student: nn.Module,
    batches: Any,
    *,
    budget: float,
    task: Criterion = F.cross_entropy,
    weights: Mapping[str, Weight] | None = None,
    lr: float = 1e-4,
    **options: Any,
) -> History:
    """Phase 3: `EndToEnd` through `potstill.core.fit`.

    Args:
        student: After phases 1 and 2; skipping them is a warning.
        batches: Of (images, labels).
        budget: Mean share of the learners' cost to aim at.
        task: Criterion of (logits, labels).
        weights: Of the terms; see `EndToEnd`.
        lr: Learning rate.
        **options: Of `fit`.

    Raises:
        ConfigError: A budget that is out of range, or that this model cannot reach.
        NonFiniteError: A loss is NaN or infinite; names the first module whose output is.
    """
    distiller = EndToEnd(student, budget, task, weights)
    gated = "budget" in distiller.objective.names
    missing = [phase for phase in ("distill", "gate") if phase not in phases(student)]
    if gated and missing:
        warnings.warn(
            f"finetune: the phases {' and '.join(missing)} have not been run on this student, "
            "which then starts from untrained learners or gates",
            stacklevel=2,
        )
    history = _fit(distiller, batches, lr, None, options)
    _note_phase(student, "finetune")
    return history


def phases(student: nn.Module) -> tuple[str, ...]:
    """The phases that ``student`` has been through, in order."""
    done: tuple[str, ...] = getattr(student, "acm_phases", ())
    return done


def name_the_culprit(model: nn.Module, images: Tensor, step: int) -> None:
    """Run ``model`` once more and say which adaptive module first gave something not finite.

    Raises:
        NonFiniteError: Names it; returns when the modules are fine and the loss is to blame.
    """
    names = tuple(require_acms(model, "finetune"))
    with torch.no_grad(), tap(model, *names) as taps:
        model(images)
    for name in names:
        reading = taps[name]
        if not bool(reading.output.isfinite().all()):
            whose = "input" if not bool(reading.input.isfinite().all()) else "output"
            raise NonFiniteError(
                f"finetune: the {whose} of module {name!r} must be finite, got NaN or infinity at "
                f"step {step}, batch of {len(images)} images; check these images, lower the "
                "learning rate, or clip the gradient"
            )


def _acm(student: nn.Module, name: str) -> ACM:
    module = student.get_submodule(name)
    assert isinstance(module, ACM)
    return module


def _note_phase(student: nn.Module, phase: str) -> None:
    student.acm_phases = (*(p for p in phases(student) if p != phase), phase)  # type: ignore[assignment]


def _needs_teacher(caller: str, teacher: nn.Module | None, batches: Any) -> None:
    from potstill.acm.activations import Activations

    cached = isinstance(getattr(batches, "dataset", None), Activations)
    if teacher is None and not cached:
        raise ConfigError(
            f"{caller}: teacher must be the dense model, got None; pass it, or batches of cached "
            "Activations"
        )


def _fit(distiller: Distiller, batches: Any, lr: float, trains: Any, options: Any) -> History:
    from potstill.core import Stage

    defaults: dict[str, Any] = {
        "optimizer": partial(torch.optim.AdamW, weight_decay=0.0),
        "schedule": cosine(final=1e-3),
        "clip": 1.0,
    }
    if trains is not None:
        defaults["stages"] = (Stage(share=1.0, trainable=trains),)
    return fit(distiller, batches, lr=lr, **{**defaults, **options})


def _over_ranks(share: Tensor) -> Tensor:
    """The shares of the global batch, which is what budget and diversity are about."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return share
    world = dist.get_world_size()
    parts = [torch.empty_like(share) for _ in range(world)]
    dist.all_gather(parts, share.detach())
    # A rank's gradient is of its own images; the mean over the ranks that follows divides by world.
    parts[dist.get_rank()] = world * share - (world - 1) * share.detach()
    return torch.cat(parts)
