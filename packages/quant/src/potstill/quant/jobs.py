"""The job of ``potstill quant distill``: a low-bit student beside its controls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from potstill.core import Column, Distiller, Job, Report
from potstill.core.engine import MakeOptimizer, Result
from potstill.quant.config import DistillConfig, Method, kept, number
from potstill.quant.files.packed import save_packed
from potstill.quant.pages import COLUMNS, bytes_of
from potstill.quant.post.gptq import post_training
from potstill.quant.subject import Subject, judge, load_subject
from potstill.quant.weights.grid import Grid
from potstill.quant.weights.lower import lower
from potstill.quant.weights.quantizers import (
    Buckets,
    DualBinary,
    LearnedLevels,
    LearnedStep,
    Quantizer,
)

__all__ = ["Distill"]

_METHODS: Mapping[Method, type[Quantizer]] = {
    "step": LearnedStep, "dual": DualBinary, "levels": LearnedLevels, "buckets": Buckets,
}  # fmt: skip
Progress = bool | str | Callable[..., None]


@contextmanager
def _alone() -> Iterator[None]:
    """What a subject trains, each process trains by itself, so that all have the same."""
    held = {k: os.environ.pop(k) for k in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if k in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


class Distill(Job[DistillConfig]):
    """Train a low-bit student with its teacher, and once more without.

    Leaves ``student.safetensors``, for `load_packed`, a page with the controls, and its figures
    in ``result.json``.
    """

    subject: Subject

    def run(self, progress: Progress = True) -> Result:
        """Do the job, or continue it; a subject may train its student before the engine starts."""
        with _alone():
            self.subject = load_subject(self.config.subject, self.config.data)
        return super().run(progress)

    def lr(self) -> float:
        """That of the subject."""
        return self.subject.lr

    def optimizer(self, distiller: Distiller) -> MakeOptimizer:
        """Weight decay is for weights: it would shrink the steps of their grids."""
        make = super().optimizer(distiller)

        def grouped(named: Iterable[tuple[str, nn.Parameter]], **options: Any) -> Any:
            groups: tuple[list[Any], list[Any]] = ([], [])
            for name, parameter in named:
                scale = ".parametrizations." in name and not name.endswith(".original")
                groups[scale].append((name, parameter))
            plain, scales = groups
            return make(
                [{"params": plain}, {"params": scales, "weight_decay": 0.0}] if scales else plain,
                **options,
            )

        return grouped

    def train(self, progress: Progress) -> None:
        """One run with the teacher, and before it one without, each in a folder of its own."""
        config = self.config
        self.keep = {**self.subject.keep, **kept(config.keep)}
        self.students: dict[str, nn.Module] = {}
        for name in ["without teacher"] * config.control + ["with teacher"]:
            student = self.lowered()
            distiller = self.subject.distiller(student, name == "with teacher")
            folder = name.replace(" ", "-")
            self.fit(distiller, self.subject.batches, folder=folder, progress=progress)
            self.students[name] = student

    def lowered(self) -> nn.Module:
        """The student that training starts from."""
        config, subject, grid = self.config, self.subject, Grid(number(self.config.bits))
        if config.start == "gptq":
            return self._post("gptq")
        make = _METHODS[config.method]
        return lower(subject.student, grid, keep=self.keep, quantizer=make, start=config.start)

    def export(self, folder: Path, history: Sequence[dict[str, float]]) -> Mapping[str, Any]:
        """Write the packed student, and the page that compares it."""
        config, subject = self.config, self.subject
        students = {"full precision": subject.student}
        if number(config.bits) < 32:
            students |= {f"post-training {name}": self._post(name) for name in ("mse", "gptq")}
        students |= self.students
        report = Report(
            f"A student at {config.bits} bits",
            summary="Every row but the first has weights on the grid. Post-training needs no "
            "training and no teacher: what it reaches is no gain of distillation.",
            columns={"score": Column(subject.unit, best="max"), **COLUMNS},
            label="student",
            seed=config.training.seed,
        )
        full, found = bytes_of(subject.student), {}
        for name, student in students.items():
            found[name] = judge(subject, student)
            size = bytes_of(student)
            bits = 32 if name == "full precision" else number(config.bits)
            report.add(name, score=found[name], bits=bits, bytes=size / 1e3, smaller=full / size)
        report.save(folder)
        if number(config.bits) < 32:
            save_packed(self.students["with teacher"], folder / "student.safetensors")
        return {**found, "bytes": bytes_of(self.students["with teacher"]), "page": "index.html"}

    def _post(self, method: Any) -> nn.Module:
        subject = self.subject
        made = post_training(
            subject.student,
            Grid(number(self.config.bits)),
            subject.inputs,
            method=method,
            keep=self.keep,
        )
        return made.student
