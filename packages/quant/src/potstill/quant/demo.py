"""A subject that needs no data: a small network tells noisy gratings apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import Batches, Distiller, Objective, accuracy, fit, generator
from potstill.core.criteria import kd
from potstill.core.schemes import LogitDistiller
from potstill.quant.subject import Subject

__all__ = ["gratings"]

_CLASSES, _SIDE = 8, 8


def gratings() -> Subject:
    """Eight orientations of a grating in noise; trains student and teacher in some seconds."""
    train, test = _pictures("train", 1024), _pictures("test", 1000)
    batches = Batches(list(zip(*train, strict=True)), 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher, student = _network(16, 32), _network(4, 8)
    plain = Objective(task=(1.0, F.cross_entropy))
    for model in (teacher, student):
        fit(LogitDistiller(model, plain), batches, steps=300, lr=1e-2, progress=False)
    return Subject(
        student=student,
        inputs=list(train[0].split(128)),
        score=_score(*test),
        distiller=partial(_distiller, teacher),
        batches=batches,
        lr=2e-3,
        unit="%",
    )


def _distiller(teacher: nn.Module, student: nn.Module, taught: bool) -> Distiller:
    if not taught:
        return LogitDistiller(student, Objective(task=(1.0, F.cross_entropy)))
    objective = Objective(task=(0.3, F.cross_entropy), kd=(0.7, partial(kd, T=2.0)))
    return LogitDistiller(student, objective, teacher)


def _score(x: Tensor, y: Tensor) -> Callable[[nn.Module], float]:
    @torch.no_grad()
    def score(student: nn.Module) -> float:
        device = next(student.parameters()).device
        return 100 * float(accuracy(student.eval()(x.to(device)), y.to(device)))

    return score


def _network(first: int, second: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * second, _CLASSES),
    )  # fmt: skip


def _pictures(purpose: str, count: int) -> tuple[Tensor, Tensor]:
    """Gratings [count 1 8 8] of random phase in noise, and their classes."""
    source = generator("gratings", purpose)
    y = torch.randint(_CLASSES, (count,), generator=source)
    phase = 2 * torch.pi * torch.rand(count, 1, 1, generator=source)
    angle = (y * torch.pi / _CLASSES)[:, None, None]
    at = torch.arange(_SIDE).float()
    wave = torch.cos(1.3 * (angle.cos() * at[:, None] + angle.sin() * at) + phase)
    noise = torch.randn(count, _SIDE, _SIDE, generator=source)
    return (wave + 0.7 * noise)[:, None], y
