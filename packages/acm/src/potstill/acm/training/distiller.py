"""The distillers of the three phases: modules alone, gates alone, everything together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.acm.layers import budget as budgets
from potstill.acm.layers.module import ACM, record_gates, require_acms
from potstill.acm.layers.surgery import dense_readings, sources
from potstill.acm.training import criteria
from potstill.core import (
    ConfigError,
    Criterion,
    Distiller,
    Losses,
    Objective,
    Weight,
    tap,
)

__all__ = ["EndToEnd", "GatePretraining", "ModuleDistillation"]


class _ByModule(Distiller):
    """Modules trained on what the teacher's modules take and give, side by side."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, criterion: Criterion) -> None:
        names = require_acms(student, type(self).__name__)
        super().__init__(student, Objective.each(names, 1.0, criterion), teacher)
        self.sources = sources(student)

    def readings(self, batch: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Input and output of the dense module behind each adaptive one, by its path.

        Args:
            batch: Images, (images, labels), or cached activations ``{path: (input, output)}``.

        Raises:
            ConfigError: Images, and no teacher to run on them.
        """
        if isinstance(batch, Mapping):
            return {name: tuple(batch[name]) for name in self.sources}
        if self.teacher is None:
            raise ConfigError(
                f"{type(self).__name__}: teacher must be the dense model, got None; pass it, or "
                "batches of cached Activations"
            )
        return dense_readings(self.teacher, self.sources, budgets.images_of(batch))


class ModuleDistillation(_ByModule):
    """Phase 1: each module learns the dense one's output from the dense one's input.

    No labels and no back-propagation through the network: the terms are the modules by path, and
    all of them train in parallel.

    Args:
        student: Adaptive model, from `acmize`.
        teacher: The dense model; None when the batches are cached activations.
        distance: criteria.Distance of `every_prefix`.
        boosted: Option of `every_prefix`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        distance: criteria.Distance = "mse",
        boosted: bool = False,
    ) -> None:
        criterion = partial(criteria.every_prefix, distance=distance, boosted=boosted)
        super().__init__(student, teacher, criterion)

    def forward(self, batch: Any, step: int) -> Losses:
        """Terms by path of the module."""
        terms = {}
        for name, (z, o) in self.readings(batch).items():
            terms[name] = (_acm(self.student, name).prefixes(z), o)
        return self.objective(step, terms)


class GatePretraining(_ByModule):
    """Phase 2: each gate learns how many learners pay for a token, on the dense model's inputs.

    Args:
        student: Adaptive model after phase 1.
        teacher: The dense model; None when the batches are cached activations.
        threshold: Threshold of `artificial_labels`.
        inclusive: Option of `artificial_labels`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        threshold: float = 0.8,
        inclusive: bool = False,
    ) -> None:
        super().__init__(student, teacher, criteria.gate_loss)
        self.threshold, self.inclusive = threshold, inclusive

    def forward(self, batch: Any, step: int) -> Losses:
        """Terms by path of the module."""
        terms = {}
        for name, (z, o) in self.readings(batch).items():
            acm = _acm(self.student, name)
            with torch.no_grad():
                labels = criteria.artificial_labels(
                    acm.prefixes(z), o, self.threshold, acm.least, self.inclusive
                )
            terms[name] = (acm.gate(z), labels, acm.least)
        return self.objective(step, terms)


class EndToEnd(Distiller):
    """Phase 3: task, budget, entropy and diversity, through gates that the task loss reaches.

    Args:
        student: Adaptive model in mode ``"gated"``; in fixed modes only the task trains.
        budget: Mean share of the learners' cost to aim at, in (0, 1].
        task: Criterion of (logits, labels).
        weights: Weights of the terms ``task``, ``budget``, ``entropy``, ``diversity``. Published:
            1, 0.1, 0.05, 0.05; a short training meets its budget with 1 for the second.
        mix: Function of (images, labels) that gives mixed ones, such as timm's ``Mixup``; the
            images that it gets are its own.

    Raises:
        ConfigError: The budget is not in (0, 1], or a weight has an unknown name; on call, a
            budget that the model cannot reach.
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
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        gated = any(acm.mode == "gated" for acm in require_acms(student, "EndToEnd").values())
        super().__init__(student, _terms_of(budget, task, weights or {}, gated))
        self.budget, self.mix = budget, mix
        self.seen: Tensor | None = None

    def forward(self, batch: Any, step: int) -> Losses:
        """Terms of a batch (images, labels)."""
        images, labels = batch
        if self.mix is not None:
            images, labels = self.mix(images.clone(), labels)
        self.seen = images
        with record_gates(self.student) as readings:
            terms: dict[str, Any] = {"task": (self.student(images), labels)}
        budgets.check_budget("finetune", self.budget, budgets.reachable(self.student, readings)[0])
        if "budget" in self.objective.names:
            share = _over_ranks(budgets.share(readings))
            soft = [reading.soft for reading in readings.values()]
            terms |= {"budget": (share,), "entropy": (soft,), "diversity": (share,)}
        return self.objective(step, terms)

    def broken_module(self) -> str:
        """The adaptive module that first gives something not finite for the images last seen.

        Not asked in every step, where the host would wait for the device: `finetune` asks when a
        loss has been found broken.

        Returns:
            A sentence; empty when all modules are fine, so that the loss is to blame.
        """
        names, model = tuple(require_acms(self.student, "finetune")), self.student
        if self.seen is None:
            return ""
        with budgets.evaluation(model, training=True), tap(model, *names) as taps:
            model(budgets.images_for(model, self.seen))
        for name in names:
            for whose, value in (("input", taps[name].input), ("output", taps[name].output)):
                if not bool(value.isfinite().all()):
                    return (
                        f"the {whose} of module {name!r} is the first with NaN or infinity, in a "
                        f"batch of {len(self.seen)} images"
                    )
        return ""


def _terms_of(
    budget: float, task: Criterion, weights: Mapping[str, Weight], gated: bool
) -> Objective:
    """The terms of phase 3; without gates only the task."""
    budgets.check_budget("EndToEnd", budget)
    chosen = {**EndToEnd.WEIGHTS, **weights}
    if unknown := set(chosen) - set(EndToEnd.WEIGHTS):
        raise ConfigError(
            f"EndToEnd: weights must name {', '.join(EndToEnd.WEIGHTS)}, got {sorted(unknown)}"
        )
    terms: dict[str, Criterion] = {"task": task}
    if gated:
        terms |= {
            "budget": partial(criteria.budget_loss, budget=budget),
            "entropy": criteria.entropy_loss,
            "diversity": criteria.diversity_loss,
        }
    return Objective({name: (chosen[name], criterion) for name, criterion in terms.items()})


def _acm(student: nn.Module, name: str) -> ACM:
    module = student.get_submodule(name)
    assert isinstance(module, ACM)
    return module


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
