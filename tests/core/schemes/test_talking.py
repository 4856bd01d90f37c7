"""Messages between two models."""

import copy

import pytest
import torch
from torch import nn

from potstill.core import fit
from potstill.core.errors import ConfigError
from potstill.core.schemes import TalkingDistiller


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


def talking(student: nn.Module, teacher: nn.Module, **options: int) -> TalkingDistiller:
    return TalkingDistiller(
        student, teacher, lower=("1", "1"), upper=("3", "3"), widths=(3, 3, 3, 3),
        **{"message": 3, **options},
    )  # fmt: skip


def test_equal_models_with_plain_coders_have_nothing_to_say() -> None:
    torch.manual_seed(0)
    student = net()
    distiller = talking(student, copy.deepcopy(student))
    with torch.no_grad():
        for coder in distiller.objective.criteria["coders"].values():
            coder.weight.copy_(torch.eye(3))
            coder.bias.zero_()
    losses = distiller((torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 0])), 0)
    assert losses.terms["told"] == losses.terms["answer"] == losses.terms["state"] == 0


def test_student_and_coders_learn_and_the_teacher_does_not() -> None:
    torch.manual_seed(0)
    distiller = talking(net(), net())
    assert distiller.teacher is not None
    before = copy.deepcopy(distiller.teacher.model.state_dict())
    batch = torch.randn(16, 4), torch.randint(2, (16,))
    losses = distiller(batch, 0)
    losses.total.backward()
    coders = distiller.objective.criteria["coders"]
    assert all(bool(p.grad.any()) for p in coders.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in coders.parameters())
    distiller.zero_grad()
    rows = fit(distiller, [batch], steps=60, lr=0.02, progress=False)
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    after = distiller.teacher.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not any("coders" in name for name in distiller.student.state_dict())


def test_wrong_options_are_said() -> None:
    with pytest.raises(ConfigError, match="message must be at least 1"):
        talking(net(), net(), message=0)
