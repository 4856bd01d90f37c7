"""Tasks: how students are trained and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import (
    Batches,
    ConfigError,
    Distiller,
    Objective,
    ShapeError,
    TeacherCache,
    fingerprint,
    generator,
)
from potstill.core.criteria import kd
from potstill.core.images import Images, Statistics
from potstill.core.schemes import LogitDistiller
from potstill.search.costs import Example

__all__ = ["Accuracy", "Task", "image_task"]


@dataclass(frozen=True)
class Task:
    """How students are trained and judged; `image_task` makes one of images and a teacher.

    Args:
        example: What a deployed call gets: its costs are the costs of a student.
        distiller: Distiller of a student.
        source: What `potstill.core.fit` trains on.
        accuracy: Accuracy of a trained student in percent, or anything of which more is better;
            inputs go to the student's device.
        name: What the task is of, for the signature of a run: another one is not continued.
        batch: Inputs and labels for scores of untrained students.
        teacher: The teacher, for scores that look at it.
        reference: Accuracy of the teacher.
        classes: Names of the classes.
        statistics: Mean and standard deviation with which inputs were normalised.
        calibration: Batches for the statistics of batch norms in a supernet.
    """

    example: Example
    distiller: Callable[[nn.Module], Distiller]
    source: Any
    accuracy: Callable[[nn.Module], float]
    name: str
    batch: tuple[Tensor, Tensor] | None = None
    teacher: nn.Module | None = None
    reference: float | None = None
    classes: tuple[str, ...] = ()
    statistics: Statistics | None = None
    calibration: Sequence[Any] = ()


def image_task(
    teacher: nn.Module,
    train: Images,
    validation: Images,
    *,
    folder: str | Path,
    batch: int = 64,
    deployed: int = 1,
    views: int = 4,
    shift: int = 4,
    weights: tuple[float, float] = (0.1, 0.9),
    temperature: float = 4.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Task:
    """Classification of images: labels and the teacher's logits, which are asked for once.

    Where the images have no classes, students are trained on the teacher's logits alone, and their
    accuracy is how often they say what the teacher says.

    Args:
        teacher: A classifier of normalised images.
        train: Images to train on.
        validation: Images to judge by.
        folder: Folder of the cache of logits.
        batch: Images of a step.
        deployed: Images of a deployed call.
        views: Augmented views of each image; 1 does not augment.
        shift: Largest shift of a view in pixels, both ways.
        weights: Weights of the labels and of the teacher.
        temperature: Temperature of the distillation.
        seed: Seed of the views.
        device: Device of the teacher.
        progress: Show a bar while the teacher is asked.

    Raises:
        ShapeError: The teacher has other classes than the images.
        ConfigError: Training and validation images of different sizes.
    """
    if train.pixels.shape[1:] != validation.pixels.shape[1:]:
        raise ConfigError(
            f"image_task: validation must have images of {list(train.pixels.shape[1:])} like "
            f"train, got {list(validation.pixels.shape[1:])}; pass size= to load_images"
        )
    labelled = bool(train.classes) and bool(validation.classes)
    targets = Accuracy(validation, teacher, device, labelled)
    data, augment = _Labelled(train), _Views(shift) if views > 1 else None
    cache = TeacherCache.write(
        folder, teacher, data, views=views, augment=augment, seed=seed, device=device,
        progress=progress,
    )  # fmt: skip
    terms: dict[str, Any] = {"kd": (weights[1] if labelled else 1.0, _Softened(temperature))}
    if labelled and weights[0]:
        terms["task"] = (weights[0], F.cross_entropy)
    images = train.normalized(train.pixels[: max(deployed, 16)])
    return Task(
        example=images[:1].repeat(deployed, 1, 1, 1),
        distiller=lambda student: LogitDistiller(student, Objective(terms)),
        source=Batches(cache.dataset(data, augment), batch),
        accuracy=targets,
        name=fingerprint(cache.spec.teacher, data.fingerprint(), targets.fingerprint(),
                         weights, temperature, deployed),
        batch=(images[:16], train.labels[:16]) if labelled else None,
        teacher=teacher,
        reference=targets(teacher),
        classes=train.classes,
        statistics=train.statistics,
        calibration=calibration(train),
    )  # fmt: skip


def calibration(images: Images, count: int = 1280) -> list[Tensor]:
    """Batches of 64 random images, for the statistics of batch norms."""
    rows = torch.randperm(len(images), generator=generator("calibration"))[:count]
    return [x for x, _ in images.take(rows).batches(64)]


class _Labelled:
    """Normalised images with their labels, one by one."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self.images.pixels[index : index + 1]
        return self.images.normalized(pixels)[0], self.images.labels[index]

    def fingerprint(self) -> str:
        """Digest of pixels, labels and statistics."""
        return fingerprint(self.images.pixels, self.images.labels, self.images.statistics)


@dataclass(frozen=True)
class _Views:
    """A shift over a black border, and a flip of half of the images."""

    shift: int

    def __call__(self, item: Sequence[Tensor], rng: torch.Generator) -> tuple[Tensor, ...]:
        x, *rest = item
        down, right = torch.randint(0, 2 * self.shift + 1, (2,), generator=rng).tolist()
        height, width = x.shape[1:]
        x = F.pad(x, (self.shift,) * 4)[:, down : down + height, right : right + width]
        flipped = bool(torch.rand((), generator=rng) < 0.5)
        return (x.flip(2) if flipped else x.contiguous(), *rest)


@dataclass(frozen=True)
class _Softened:
    temperature: float

    def __call__(self, z_s: Tensor, z_t: Tensor, *_: Any) -> Tensor:
        return kd(z_s, z_t, T=self.temperature)


class Accuracy:
    """Share of right answers on held-out images in percent; the teacher's, where no labels are."""

    def __init__(
        self, images: Images, teacher: nn.Module, device: str | torch.device, labelled: bool
    ) -> None:
        self.images, self.labels, self.outputs = images, images.labels, 0
        answers = self._answers(teacher.to(device))
        if not labelled:
            self.labels = answers
        elif self.outputs != len(images.classes):
            raise ShapeError(
                f"accuracy: teacher must have {len(images.classes)} outputs, one for each class of "
                f"the images, got {self.outputs}; fine-tune it on these classes first"
            )

    def __call__(self, student: nn.Module) -> float:
        """Accuracy of a student."""
        return 100 * float((self._answers(student) == self.labels).double().mean())

    def fingerprint(self) -> str:
        """Digest of the images and of what is right."""
        return fingerprint(self.images.pixels, self.labels)

    @torch.no_grad()
    def _answers(self, model: nn.Module) -> Tensor:
        device, training = next(model.parameters()).device, model.training
        model.eval()
        outputs = [model(x.to(device)).cpu() for x, _ in self.images.batches()]
        model.train(training)
        self.outputs = self.outputs or outputs[0].shape[1]
        return torch.cat(outputs).argmax(1)
