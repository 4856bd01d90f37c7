"""In other people's hands: modes, random streams, compiled, tied and spread models, pickles."""

import copy
import pickle
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import dispatch_model
from safetensors.torch import load_file, load_model
from torch import nn

from potstill.core import (
    CheckpointError,
    ConfigError,
    Distiller,
    NonFiniteError,
    Objective,
    ShapeError,
    Validation,
    after,
    before,
    constant,
    cosine,
    decay,
    fit,
    linear,
    ramp,
)
from potstill.core.adapters import TensorOutput
from potstill.core.criteria import kd
from potstill.core.schemes import LogitDistiller


class Match(Distiller):
    def forward(self, batch, step):
        return self.objective(step, hint=(self.student(batch), self.teacher(batch)))


def regression(student, run=None, steps=3, **options):
    distiller = Match(student, Objective(hint=(1.0, F.mse_loss)), nn.Linear(3, 2))
    x = torch.linspace(-1, 1, 12).view(4, 3)
    return fit(distiller, [x], steps=steps, run=run, progress=False, **options)


def test_norms_that_were_put_to_rest_stay_there():
    student = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    student[0].eval()
    before = student[0].running_mean.clone()
    regression(student, validation=Validation(lambda model: 0.0, every=1))
    assert torch.equal(student[0].running_mean, before)
    student.eval()  # as a whole, after a run or an evaluation: it trains like any other
    regression(student)
    assert not torch.equal(student[0].running_mean, before)


@pytest.mark.parametrize("fails", [False, True])
def test_global_streams_are_given_back(fails):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    distiller = Match(nn.Linear(3, 2), Objective(hint=(1.0, F.mse_loss)), nn.Linear(3, 2))
    torch.manual_seed(5)
    x = torch.full((4, 3), float("nan") if fails else 1.0)
    with pytest.raises(NonFiniteError) if fails else nullcontext():
        fit(distiller, [x], steps=2, progress=False)
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]  # noqa: NPY002


def test_a_finished_run_is_not_passed_off_as_a_shorter_one(tmp_path):
    torch.manual_seed(0)
    student = nn.Linear(3, 2)
    state = copy.deepcopy(student.state_dict())
    teacher = nn.Linear(3, 2)

    def run(steps):
        student.load_state_dict(state)
        distiller = Match(student, Objective(hint=(1.0, F.mse_loss)), teacher)
        return fit(distiller, [torch.ones(2, 3)], steps=steps, run=tmp_path, progress=False)

    assert len(run(5)) == 5
    with pytest.raises(CheckpointError, match="a run of 5 steps already, got a budget of 3"):
        run(3)
    assert len(run(5)) == 5
    assert len(run(7)) == 7


def test_compiled_students_have_the_names_of_plain_ones(tmp_path):
    torch.manual_seed(0)
    plain, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    wrapped = torch.compile(copy.deepcopy(plain), backend="eager")

    def run(student, steps, folder):
        distiller = Match(student, Objective(hint=(1.0, F.mse_loss)), teacher)
        return fit(distiller, [torch.ones(2, 3)], steps=steps, run=folder, progress=False)

    run(wrapped, 2, tmp_path / "a")
    assert set(load_file(tmp_path / "a" / "student.safetensors")) == {"weight", "bias"}
    again = copy.deepcopy(plain)
    run(again, 4, tmp_path / "a")
    run(plain, 4, tmp_path / "b")
    assert torch.equal(again.weight, plain.weight)


def test_tied_weights_are_written_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.second(self.first(x)))

    student = Tied()
    regression(student, run=tmp_path)
    assert "second.weight" not in load_file(tmp_path / "student.safetensors")
    other = Tied()
    load_model(other, tmp_path / "student.safetensors")
    assert torch.equal(other.second.weight, student.second.weight)


@pytest.mark.parametrize("weight", [after(2, 1.0), before(2, 1.0), decay(1.0, 0.5), ramp(3, 1.0)])
def test_a_distiller_with_a_scheduled_weight_can_be_pickled(weight):
    distiller = Match(nn.Linear(3, 2), Objective(hint=(weight, F.mse_loss)), nn.Linear(3, 2))
    again = pickle.loads(pickle.dumps(distiller))
    found = dict(again.objective.items())["hint"][0]
    assert [found(step) for step in range(5)] == [weight(step) for step in range(5)]
    for schedule in (constant(), linear(0.1, 0.2), cosine(0.1, 0.2)):
        assert pickle.loads(pickle.dumps(schedule))(0.3) == schedule(0.3)


def test_optimizers_that_want_a_closure_are_refused_by_name():
    def lbfgs(named, lr):
        return torch.optim.LBFGS([p for _, p in named], lr=lr)

    with pytest.raises(ConfigError, match="must step without a closure, got LBFGS"):
        regression(nn.Linear(3, 2), optimizer=lbfgs)


class Returns(nn.Module):
    """A model of another library: what it returns has the logits somewhere inside."""

    def __init__(self, pack):
        super().__init__()
        self.head, self.pack = nn.Linear(3, 4), pack

    def forward(self, x):
        return self.pack(self.head(x))


def logits_of(student, teacher, run=None):
    distiller = LogitDistiller(student, Objective(kd=(1.0, kd)), teacher)
    x = torch.linspace(-1, 1, 12).view(4, 3)
    return fit(distiller, [(x, torch.arange(4))], steps=2, run=run, progress=False)


@pytest.mark.parametrize(
    "pack",
    [
        lambda z: (z,),
        lambda z: {"logits": z, "features": z.sum()},
    ],
)
def test_logits_are_taken_out_of_what_teacher_and_student_return(pack):
    torch.manual_seed(0)
    student, teacher = Returns(pack), Returns(pack)
    plain = copy.deepcopy(student.head)
    logits_of(student, teacher)
    logits_of(plain, teacher.head)
    assert torch.equal(student.head.weight, plain.weight)


def test_outputs_that_could_be_several_things_are_refused_and_can_be_chosen():
    teacher = Returns(lambda z: (z.sum(), z))
    with pytest.raises(ShapeError, match=r"got 0, 1; choose one: .* TensorOutput\(model, output="):
        logits_of(nn.Linear(3, 4), teacher)
    logits_of(nn.Linear(3, 4), TensorOutput(teacher, output=lambda pair: pair[1]))


def test_a_teacher_that_a_device_map_spread_stays_where_it_is(tmp_path):
    torch.manual_seed(0)
    student, teacher = nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4))
    spread = dispatch_model(
        copy.deepcopy(teacher), {"0": "cpu", "1": "disk"}, "cpu", offload_dir=tmp_path / "off"
    )
    homes = {name: p.device for name, p in spread.named_parameters()}
    again = copy.deepcopy(student)
    logits_of(student, spread, run=tmp_path / "run")
    logits_of(again, teacher)
    assert torch.equal(student.weight, again.weight)
    assert {name: p.device for name, p in spread.named_parameters()} == homes
