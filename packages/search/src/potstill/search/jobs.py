"""``potstill search suggest`` and ``elastic``: images and a teacher in, students out."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from potstill.core import DataError, Job, Report, seed_all, staging
from potstill.core.adapters import load_teacher
from potstill.core.images import IMAGENET, Images, Statistics, load_images
from potstill.search.builders import timm_model
from potstill.search.config import ElasticConfig, SuggestConfig
from potstill.search.elastic import Elastic, ElasticSandwich
from potstill.search.finding import suggest
from potstill.search.space import Space
from potstill.search.tasks import Accuracy, Task, calibration, image_task

__all__ = ["Suggest", "Supernet", "save_student"]


class Suggest(Job[SuggestConfig]):
    """Find the student for a teacher and a budget.

    Leaves ``student/``, a folder for ``timm.create_model("local-dir:...")`` where the space is one
    of timm; ``search.jsonl`` with every measurement; and the page.

    Args:
        config: What to search.
    """

    def train(self, progress: Any) -> None:
        """Costs, shortlist and rungs; each is continued by itself."""
        config, training = self.config, self.config.training
        task = self._task(progress)
        space = fitting(Space.load(config.space), task.classes)
        supernet = None
        if config.supernet is not None:
            supernet = Elastic.load(config.supernet / "supernet", space)
        self.found = suggest(
            space, task, config.budget, training=training, score=config.score, init=config.init,
            supernet=supernet, sampler=config.sampler,
            shortlist=config.shortlist, candidates=config.candidates, out=config.out,
            fit=partial(self.fit, progress=progress),
        )  # fmt: skip
        self.history = []  # of several trainings; each has its own folder

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Report:
        """Write the student and the page."""
        found = self.found
        task = found.task
        save_student(found.student, folder / "student", task.classes, task.statistics)
        best = {"choice": found.best.choice, "costs": found.best.costs,
                "accuracy": found.best.accuracy[-1], "teacher": found.task.reference,
                "statistics": task.statistics, "notes": found.notes}  # fmt: skip
        with staging(folder) as temporary:
            (temporary / "best.json").write_text(json.dumps(best, indent=1), encoding="utf-8")
            os.replace(temporary / "best.json", folder / "best.json")
        report: Report = found.report()
        return report

    def _task(self, progress: Any) -> Task:
        config, training = self.config, self.config.training
        teacher, train, held = pictures(config)
        return image_task(
            teacher, train, held, folder=config.out / "teacher", batch=training.batch,
            deployed=config.deployed, views=config.views, temperature=config.temperature,
            weights=(config.label_weight, 1 - config.label_weight), seed=training.seed,
            device=self.engine.device, progress=bool(progress),
        )  # fmt: skip


class Supernet(Job[ElasticConfig]):
    """Train one set of weights for all students of a space, by the sandwich rule.

    Leaves ``supernet/`` for the score elastic of ``potstill search suggest``, and the accuracies of
    the largest and of the smallest student in ``result.json``.

    Args:
        config: What to train.

    Raises:
        DataError: Images without classes.
    """

    def train(self, progress: Any) -> None:
        """The sandwich: every student learns from the teacher, the largest from the labels too."""
        config, training = self.config, self.config.training
        self.teacher, self.images, held = pictures(config)
        if not self.images.classes:
            raise DataError(f"elastic: {config.images} must have a folder for each class, got none")
        self.accuracy = Accuracy(held, self.teacher, self.engine.device, labelled=True)
        space = fitting(Space.load(config.space), self.images.classes)
        self.elastic = Elastic(space, seed=training.seed)
        distiller = ElasticSandwich(
            self.elastic, training.steps or 1, random=config.random, delay=config.delay,
            warmup=config.warmup, temperature=config.temperature, teacher=self.teacher,
        )  # fmt: skip
        self.fit(distiller, self.images.draws(training.batch), progress=progress)

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Mapping[str, Any]:
        """Write the weights, and how good the largest and the smallest student are."""
        elastic = self.elastic
        elastic.save(folder / "supernet")
        ends = {"largest": elastic.largest, "smallest": elastic.least}
        found = {
            name: self.accuracy(elastic.extract(choice, calibration(self.images)))
            for name, choice in ends.items()
        }
        return {**found, "teacher": self.accuracy(self.teacher)}


def pictures(config: SuggestConfig | ElasticConfig) -> tuple[nn.Module, Images, Images]:
    """The teacher, and the images to train on and to judge by, normalised as it wants them."""
    seed = config.training.seed
    loaded = load_teacher(config.teacher, pretrained=not config.fresh)
    statistics = loaded.statistics or IMAGENET
    images = load_images(config.images, size=config.size, statistics=statistics)
    if config.fresh and images.classes:
        seed_all("teacher", seed)
        count = len(images.classes)
        loaded = load_teacher(config.teacher, pretrained=False, num_classes=count)
    if config.validation is None:
        held, train = images.split(0.2, seed)
        return loaded.model, train, held
    held = load_images(
        config.validation, size=config.size, statistics=statistics, classes=images.classes or None
    )
    return loaded.model, images, held


def fitting(space: Space, classes: Sequence[str]) -> Space:
    """The space with one output for each class, where its file does not say how many."""
    takes = space.build is timm_model or "num_classes" in inspect.signature(space.build).parameters
    if classes and takes and "num_classes" not in {*space.fixed, *space.choices}:
        return space.having(num_classes=len(classes))
    return space


def save_student(
    student: nn.Module,
    folder: str | Path,
    classes: Sequence[str] = (),
    statistics: Statistics | None = None,
) -> Path:
    """Write a student for other programs.

    A model of timm becomes a folder for ``timm.create_model("local-dir:...", pretrained=True)``; it
    also holds ``model.json``, with which ``potstill acm convert --checkpoint`` takes the weights. A
    model with ``save_pretrained`` writes itself; of any other the weights are written.

    Args:
        student: The model.
        folder: Made when missing.
        classes: Names of the classes.
        statistics: Mean and standard deviation of its images; those of the architecture by default.
    """
    folder = Path(folder)
    if hasattr(student, "save_pretrained"):
        student.save_pretrained(folder)  # type: ignore[operator]
        return folder
    from safetensors.torch import save_file

    options: Any = getattr(student, "potstill_options", None)
    with staging(folder) as temporary:
        if options is None:
            tensors = {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}
            save_file(tensors, temporary / "model.safetensors")
        else:
            from timm.models import save_for_hf

            plain: Any = student.cpu()
            how = dict(zip(("mean", "std"), map(list, statistics or ()), strict=False))
            about: dict[str, Any] = {"pretrained_cfg": how} if how else {}
            about |= {"label_names": list(classes)} if classes else {}
            save_for_hf(plain, str(temporary), about, dict(options), safe_serialization=True)
            kwargs = {**options, "num_classes": plain.num_classes}
            model: dict[str, Any] = {"kwargs": kwargs, **how}
            model |= {"classes": list(classes)} if classes else {}
            (temporary / "model.json").write_text(json.dumps(model, indent=1), encoding="utf-8")
        for path in sorted(temporary.iterdir()):
            os.replace(path, folder / path.name)
    return folder
