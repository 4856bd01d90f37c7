"""``potstill acm distill``: the three phases, each with a run folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from timm.data import Mixup

from potstill.acm.config import DistillConfig
from potstill.acm.layers.module import acms
from potstill.acm.store.folders import save_with_teacher, teacher_of
from potstill.acm.store.images import train_batches
from potstill.acm.store.pretrained import from_pretrained, save_pretrained
from potstill.acm.training.distiller import EndToEnd, GatePretraining, ModuleDistillation
from potstill.acm.training.phases import run_phase
from potstill.core import key
from potstill.core.engine import Job

__all__ = ["Distill"]

Row = dict[str, float]


class Distill(Job[DistillConfig]):
    """Phase 1 in ``1-distill``, phase 2 in ``2-gate``, phase 3 in ``3-finetune``.

    Each leaves its adaptive model in a folder ``model``; the result, with its teacher, is in the
    ``model`` of the run.

    Raises:
        DataError: On run: images, model or teacher are missing.
    """

    def train(self, progress: bool | str | Callable[[Row, float], None]) -> None:
        """Run the phases that have epochs, one after another."""
        config = self.config
        self.student, teacher = from_pretrained(config.model), teacher_of(config.model)
        batches = train_batches(config, self.student, labels=bool(config.finetune.epochs))
        if config.finetune.epochs:
            images: Any = batches.dataset
            self.student.acm_classes = images.classes  # they number folders from now on
        task = partial(F.cross_entropy, label_smoothing=config.smoothing)
        weights, augment = {"budget": config.budget_weight}, config.augment
        mix = None
        if augment.mixes:  # draws from numpy's global stream, which `fit` sets before each step
            classes = self.student.num_classes
            mix = Mixup(augment.mixup, augment.cutmix, label_smoothing=0.0, num_classes=classes)
        last = EndToEnd(self.student, config.budget, task, weights, mix)
        phases = {
            "distill": (config.distill, ModuleDistillation(self.student, teacher)),
            "gate": (config.gate, GatePretraining(self.student, teacher, config.threshold)),
            "finetune": (config.finetune, last),
        }
        self.losses: Row = {}
        for number, (name, (phase, distiller)) in enumerate(phases.items(), start=1):
            if not phase.epochs:
                continue
            folder = f"{number}-{name}"
            rows = run_phase(
                name, distiller, batches, fit=partial(self.fit, folder=folder),
                epochs=phase.epochs, lr=phase.lr, seed=key(name, config.training.seed),
                progress=f"phase {number}" if isinstance(progress, str) else progress,
            )  # fmt: skip
            modules = 1 if name == "finetune" else len(acms(self.student))
            self.losses[f"phase {number} loss"] = rows[-1]["loss"] / modules
            if self.engine.main:
                save_pretrained(self.student, config.out / folder / "model")

    def export(self, folder: Path, history: Sequence[Row]) -> Row:
        """Write the trained model, with its teacher beside it."""
        save_with_teacher(
            self.student, folder / "model", self.config.model, budget=self.config.budget
        )
        return self.losses
