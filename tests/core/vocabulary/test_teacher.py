"""Teachers and distillers: what trains, what does not, and what is saved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Distiller, Frozen, Objective, fit


class Match(Distiller):
    def forward(self, batch, step):
        return self.objective(step, output=(self.student(batch), self.teacher(batch)))


def model(width=4):
    return nn.Sequential(
        nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 2)
    )


def batches():
    return [torch.randn(8, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def test_training_leaves_gradients_and_buffers_of_the_teacher_alone():
    teacher = model()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    distiller = Match(model(3), Objective(output=(1.0, F.mse_loss)), teacher=teacher)
    fit(distiller, batches(), steps=5, lr=0.1, progress=False)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())  # as it came


def test_train_mode_does_not_wake_the_teacher():
    distiller = Match(model(), Objective(output=(1.0, F.mse_loss)), teacher=model()).train()
    assert distiller.student.training
    assert not any(m.training for m in distiller.teacher.model.modules())


def test_the_teacher_is_not_saved_and_projectors_are():
    class Project(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(2, 2)

        def forward(self, s, t):
            return F.mse_loss(self.map(s), t)

    distiller = Match(nn.Linear(3, 2), Objective(output=(1.0, Project())), teacher=nn.Linear(3, 2))
    assert sorted(distiller.state_dict()) == [
        "objective.criteria.output.map.bias",
        "objective.criteria.output.map.weight",
        "student.bias",
        "student.weight",
    ]
    assert not list(distiller.teacher.parameters())


def test_a_teacher_follows_dtype_and_may_be_frozen_twice():
    frozen = Frozen(Frozen(nn.Linear(2, 2)))
    assert isinstance(frozen.model, nn.Linear)
    assert frozen.double().model.weight.dtype == torch.float64


def test_a_distiller_without_forward_says_what_to_write():
    with pytest.raises(NotImplementedError, match="write forward"):
        Distiller(nn.Linear(1, 1), Objective(a=(1.0, F.mse_loss)))(None, 0)
