"""Routing of tensors to terms."""

import pytest
import torch
import torch.nn.functional as F

from potstill.core import Objective, after
from potstill.core.errors import ConfigError
from potstill.core.testing import unchanged
from potstill.sr import IMDN, Terms, UpscalerToUpscaler
from potstill.sr.training.distiller import make_objective, matching_taps

BATCH = (torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16))


class Counting(torch.nn.Module):
    scale = 2

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return F.interpolate(x, scale_factor=2)


def test_every_term_reaches_the_student_and_none_the_teacher():
    torch.manual_seed(0)
    student, teacher = IMDN(2, 8, blocks=2), IMDN(2, 16, blocks=4)
    taps = matching_taps(student, teacher)
    weights = Terms(output=0.5, affinity=1.0, wavelet=0.3, contrastive=0.1)
    objective = make_objective(weights, taps=len(taps))
    distiller = UpscalerToUpscaler(student, objective, teacher, taps)
    with unchanged(teacher.eval().requires_grad_(False)):
        losses = distiller(BATCH, 0)
        losses.total.backward()
    assert sorted(losses.terms) == [
        "contrastive", "feature.0", "feature.1", "output", "task", "wavelet",
    ]  # fmt: skip
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())
    expected = F.l1_loss(student(BATCH[0]), teacher(BATCH[0]))
    torch.testing.assert_close(losses.terms["output"], expected.detach())
    assert not any(key.startswith("teacher") for key in distiller.state_dict())


def test_the_teacher_rests_until_it_is_needed():
    teacher = Counting()
    objective = Objective(task=(1.0, F.l1_loss), output=(after(2, 0.5), F.l1_loss))
    distiller = UpscalerToUpscaler(IMDN(2, 8, 1), objective, teacher)
    for step in range(4):
        distiller(BATCH, step)
    assert teacher.calls == 2


def test_output_term_alone_needs_no_photograph_term():
    distiller = UpscalerToUpscaler(
        IMDN(2, 8, 1), make_objective(Terms(task=0, output=1.0)), Counting()
    )
    assert list(distiller(BATCH, 0).terms) == ["output"]


def test_bad_arguments():
    with pytest.raises(ConfigError, match="teacher must be given for the terms task, output"):
        UpscalerToUpscaler(IMDN(2, 8, 1), make_objective(Terms(output=1.0)))
    with pytest.raises(ConfigError, match="teacher must enlarge by 3 like the student, got 2"):
        UpscalerToUpscaler(IMDN(3, 8, 1), make_objective(Terms(output=1.0)), IMDN(2, 8, 1))
