"""A student beside its teacher on the same noise, and both beside real items."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import Column, Distiller, Losses, Objective, Report
from potstill.flow.measure.distances import coverage, mmd2, sliced_w2
from potstill.flow.methods.draws import Batch, Items
from potstill.flow.student import Generator
from potstill.flow.teachers.teacher import Teacher, drawn, in_batches

__all__ = ["Judge", "Learning", "compare", "evaluate"]

_COLUMNS = {
    "evaluations": Column(), "items/s": Column("1/s"), "SW2": Column(best="min"),
    "MMD2": Column(best="min"), "rmse": Column(), "coverage": Column(best="max"),
    "judge": Column("%"),
}  # fmt: skip


class Judge(nn.Module):
    """A small classifier of images, trained on real ones.

    Args:
        channels: Channels of an image.
        classes: Number of classes.
        width: Channels of its two layers.
    """

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.AvgPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width),
            nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits, [images classes]."""
        logits: Tensor = self.layers(images)
        return logits


class Learning(Distiller):
    """Train a judge. Term: ``class`` (logits, labels)."""

    def __init__(self, student: Judge) -> None:
        super().__init__(student, Objective({"class": (1.0, F.cross_entropy)}))

    def forward(self, batch: Batch, step: int) -> Losses:
        """Losses of a batch of real images."""
        return self.objective(step, {"class": (self.student(batch.real), batch.condition)})


def compare(
    values: Tensor, reference: Tensor, endpoints: Tensor, *, judged: float | None = None
) -> dict[str, float]:
    """Figures of a set of samples.

    Args:
        values: Samples, [items ...].
        reference: Real items.
        endpoints: Where the teacher's path ends for the same noise, as ``values``.
        judged: Share of the samples that a judge takes for their class.

    Returns:
        Sliced W2 and MMD^2 to the reference (kernels as wide as the root of an item's numbers),
        coverage of it, root mean squared difference to the endpoints, and ``judge`` in percent.
    """
    flat, real = values.flatten(1), reference.flatten(1)
    widths = [w * (flat.shape[1] / 2) ** 0.5 for w in (0.1, 0.3, 1.0, 3.0)]
    found = {
        "SW2": sliced_w2(flat, real), "MMD2": mmd2(flat, real, widths),
        "rmse": float((values - endpoints).square().mean().sqrt()),
        "coverage": coverage(flat, real),
    }  # fmt: skip
    return found if judged is None else {**found, "judge": 100 * judged}


@torch.no_grad()
def evaluate(
    student: Generator,
    teacher: Teacher,
    reference: Items,
    *,
    judge: nn.Module | None = None,
    samples: int = 1000,
    steps: Sequence[int] = (1, 2, 4, 8, 50),
    seed: int = 0,
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> Report:
    """Compare samplers on the same noise and classes.

    A judge rewards samples that are typical of their class, so its column stands beside distances
    and coverage. No FID: that needs ten thousand samples, see `fid`.

    Args:
        student: The student.
        teacher: The teacher.
        reference: Real items.
        judge: A classifier of items, or None.
        samples: Samples of each.
        steps: Euler steps of the teacher, one row each; the last one gives the endpoints.
        seed: Seed of noise and classes.
        batch: Items at a time.
        device: Where it runs.
    """
    noise, labels = drawn(student.shape, student.classes, samples, seed)
    student, teacher = student.to(device).eval(), teacher.to(device).eval()
    twice = 2 if teacher.guidance != 1.0 and labels is not None else 1

    def sampled(one: Callable[..., Tensor]) -> tuple[Tensor, float]:
        began = time.perf_counter()
        parts = [
            one(z.to(device), None if c is None else c.to(device)).float().cpu()
            for z, c in in_batches(noise, labels, batch)
        ]
        return torch.cat(parts), samples / (time.perf_counter() - began)

    def of(count: int) -> Callable[..., Tensor]:
        return lambda z, c: teacher.sample(z, c, steps=count)

    made: dict[str, tuple[int, tuple[Tensor, float]]] = {
        f"teacher, {n} steps": (twice * n, sampled(of(n))) for n in steps
    }
    endpoints = next(reversed(made.values()))[1][0]
    made["student"] = student.evaluations, sampled(student)
    report = Report("Student and teacher", columns=_COLUMNS, label="sampler", seed=seed)
    rows: Mapping[str, Any] = made
    for name, (evaluations, (values, rate)) in rows.items():
        judged = None
        if judge is not None and labels is not None:
            logits = judge.to("cpu").eval()(values)
            judged = float((logits.argmax(1) == labels).double().mean())
        figures: dict[str, Any] = dict(compare(values, reference.values, endpoints, judged=judged))
        report.add(name, evaluations=evaluations, **{"items/s": rate}, **figures)
    return report
