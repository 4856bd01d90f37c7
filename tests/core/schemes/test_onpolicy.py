"""Batches that the student draws."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import Distiller, Objective, Run, fit
from potstill.core.errors import ConfigError
from potstill.core.schemes import OnPolicy


class Match(Distiller):
    def forward(self, batch: Tensor, step: int) -> Any:
        assert self.teacher is not None
        return self.objective(step, soft=(self.student(batch), self.teacher(batch)))


def train(steps: int, run: Path | None = None) -> tuple[Tensor, list[float]]:
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 3), nn.Linear(3, 3)
    seen: list[float] = []

    def draw(model: nn.Module, size: int, rng: torch.Generator) -> Tensor:
        assert not model.training
        assert not torch.is_grad_enabled()
        found: Tensor = model(torch.randn(size, 3, generator=rng))
        seen.append(float(found.mean()))
        return found

    source = OnPolicy(student, draw, refresh=4, size=16, batch=8)
    distiller = Match(student, Objective(soft=(1.0, F.mse_loss)), teacher)
    fit(distiller, source, steps=steps, lr=0.1, progress=False,
        run=None if run is None else Run(run))  # fmt: skip
    return student.weight.detach().clone(), seen


def test_pools_are_of_the_student_as_it_is_now() -> None:
    _, seen = train(12)
    assert len(seen) == 3
    assert len(set(seen)) == 3


def test_a_run_that_stopped_between_two_pools_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """The pool is older than the checkpoint's weights: it must be in the checkpoint."""
    whole, _ = train(12)
    train(6, tmp_path)
    again, seen = train(12, tmp_path)
    assert torch.equal(again, whole)
    assert len(seen) == 1


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="must be at least 1, got"):
        OnPolicy(nn.Identity(), lambda s, n, r: torch.zeros(n), refresh=0)
