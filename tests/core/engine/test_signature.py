"""A run folder belongs to one run: what differs is refused by name, with both values."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import (
    Batches,
    CheckpointError,
    ConfigError,
    Distiller,
    Objective,
    Run,
    Stage,
    Turn,
    after,
    cosine,
    decay,
    fit,
)
from potstill.core.criteria import kd
from potstill.core.engine.signature import describe, sketch


class Match(Distiller):
    def forward(self, batch, step):
        z = self.student(batch)
        return self.objective(step, hint=(z, self.teacher(batch)))


class Scaled(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, s, t):
        return self.scale * F.mse_loss(s, t)


def draw(step, rank, world):
    return torch.ones(2, 3) * (step + 1)


def draw_others(step, rank, world):
    return torch.ones(2, 3) * (step + 2)


def train(folder, steps=3, resume=True, teacher=None, weight=1.0, criterion=F.mse_loss,
          batches=draw, student=None, **options):  # fmt: skip
    torch.manual_seed(0)
    student = student or nn.Linear(3, 2)
    if teacher is None:
        teacher = nn.Linear(3, 2)
    distiller = Match(student, Objective(hint=(weight, criterion)), teacher)
    run = Run(folder, every=1, resume=resume)
    return fit(distiller, batches, steps=steps, run=run, **{"progress": False, **options})


def wider():
    torch.manual_seed(5)
    return nn.Linear(3, 2)


CHANGES = {
    "data": ({"batches": draw_others}, r"another data .*draw \w+, now .*draw_others \w+"),
    "ready batches": ({"batches": [torch.ones(2, 3)]}, "another data "),
    "teacher": ({"teacher": wider()}, r"another teacher .Linear \w+, now Linear"),
    "weight": ({"weight": 0.5}, r"another weight of the term 'hint' .\[1.0\], now \[0.5\]"),
    "schedule of a weight": ({"weight": after(2, 1.0)}, "another weight of the term 'hint'"),
    "criterion": (
        {"criterion": F.l1_loss},
        r"another criterion of the term 'hint' .*mse_loss, now .*l1_loss",
    ),
    "option of a criterion": ({"criterion": partial(F.mse_loss, reduction="mean")}, "criterion of"),
    "local criterion": ({"criterion": lambda s, t: (s - t).abs().mean()}, "criterion of"),
    "lr": ({"lr": 0.5}, r"another lr .0.001, now 0.5"),
    "optimizer": ({"optimizer": torch.optim.SGD}, r"another optimizer .*Adam, now .*SGD"),
    "option of the optimizer": (
        {"optimizer": partial(torch.optim.Adam, betas=(0.5, 0.9))},
        r"another optimizer .*, now .*betas=\[0.5, 0.9\]",
    ),
    "schedule": ({"schedule": cosine()}, r"another schedule .\[1.0\], now \[1.0, 0.99"),
    "clip": ({"clip": 1.0}, r"another clip .None, now 1.0"),
    "ema": ({"ema": 0.9}, r"another ema .None, now 0.9"),
    "accumulate": ({"accumulate": 2}, r"another accumulate .1, now 2"),
    "seed": ({"seed": 1}, r"another seed .0, now 1"),
    "student": ({"student": nn.Sequential(nn.Linear(3, 2))}, "another student "),
    "trainable": (
        {"stages": [Stage(share=1.0, trainable=["student.weight"])]},
        r"another trainable .None, now \['student.weight'\]",
    ),
    "turns": (
        {"stages": [Stage(share=1.0, turns=(Turn("student", ["student.*"]),))]},
        "another turn, turn 'student' .none, now",
    ),
    "stages": (
        {"stages": [Stage(share=0.5), Stage(share=0.5)]},
        "of stages .1, now 2",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_that_was_interrupted_is_not_continued_as_another(tmp_path, name):
    change, message = CHANGES[name]
    train(tmp_path)
    with pytest.raises(CheckpointError, match=message) as said:
        train(tmp_path, steps=4, **change)
    assert 'resume="anyway"' in str(said.value)
    assert len(train(tmp_path, steps=4)) == 4  # and nothing was lost


def test_speed_options_longer_budgets_and_the_same_again_are_not_another_run(tmp_path):
    train(tmp_path, optimizer=partial(torch.optim.Adam, foreach=False))
    assert len(train(tmp_path, steps=5, optimizer=partial(torch.optim.Adam, fused=True))) == 5


def test_all_that_differs_is_named_at_once(tmp_path):
    train(tmp_path)
    with pytest.raises(CheckpointError, match="another data .*; another lr .*; another weight"):
        train(tmp_path, batches=draw_others, lr=0.1, weight=0.1)


def test_it_can_be_continued_deliberately(tmp_path):
    train(tmp_path)
    history = train(tmp_path, steps=5, resume="anyway", lr=0.5, weight=0.25, teacher=wider())
    assert [row["lr"] for row in history] == [0.001] * 3 + [0.5] * 2
    assert len(history) == 5


def test_another_optimizer_begins_anew_where_that_is_deliberate(tmp_path):
    train(tmp_path)
    momentum = partial(torch.optim.SGD, momentum=0.9)
    with pytest.warns(UserWarning, match="another optimizer begins without moments"):
        history = train(tmp_path, steps=5, resume="anyway", optimizer=momentum, lr=0.25)
    assert len(history) == 5


def test_student_and_teacher_must_not_be_one():
    layer = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="must not share parameters that train, got the same"):
        Match(layer, Objective(hint=(1.0, F.mse_loss)), layer)
    assert layer.weight.requires_grad  # refused before anything was frozen
    with pytest.raises(ConfigError, match="got 1.weight, 1.bias; pass copy.deepcopy"):
        Match(nn.Sequential(nn.Linear(3, 3), layer), Objective(hint=(1.0, F.mse_loss)), layer)
    shared = nn.Linear(3, 3).requires_grad_(False)  # a frozen trunk may be common
    student, teacher = (nn.Sequential(shared, nn.Linear(3, 2)) for _ in range(2))
    distiller = Match(student, Objective(hint=(1.0, F.mse_loss)), teacher)
    fit(distiller, [torch.ones(2, 3)], steps=1, progress=False)


def test_fit_gives_teacher_and_student_back_as_they_came():
    teacher = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1))
    teacher[0].bias.requires_grad_(False)
    student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    student[0].requires_grad_(False)
    distiller = Match(student, Objective(hint=(1.0, F.mse_loss)), teacher)
    for _ in range(2):  # a second run freezes the teacher again
        before = teacher[0].weight.clone()
        fit(distiller, [torch.ones(2, 3)], steps=2, progress=False)
        assert torch.equal(teacher[0].weight, before)
        assert [p.requires_grad for p in teacher.parameters()] == [True, False]
        assert teacher.training
        assert teacher[1].training
        assert [p.requires_grad for p in student.parameters()] == [False, False, True, True]


@pytest.mark.parametrize("options", [{"steps": 1, "lr": 0.0}, {}, {"epochs": 1, "batches": draw}])
def test_options_that_are_refused_leave_the_teacher_as_it_came(options):
    teacher = nn.Linear(3, 2)
    distiller = Match(nn.Linear(3, 2), Objective(hint=(1.0, F.mse_loss)), teacher)
    batches = options.pop("batches", [torch.ones(2, 3)])
    with pytest.raises(ConfigError):
        fit(distiller, batches, progress=False, **options)
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())


# --- descriptions and digests --------------------------------------------------------------------


def outer(scale):
    def inner(s, t):
        return scale * s

    return inner


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(kd, T=2.0), partial(kd, T=4.0)),
        (Scaled(1.0), Scaled(2.0)),
        (outer(1.0), outer(2.0)),
        (lambda s, t: s - t, lambda s, t: s + t),
        (nn.Linear(2, 3), nn.Linear(3, 2)),
        (decay, after),
        ({"a": 1}, {"a": 2}),
    ],
)
def test_other_things_have_other_descriptions(one, other):
    assert describe(one) == describe(one)
    assert describe(one) != describe(other)
    assert "0x" not in describe(one)


def test_a_digest_sees_values_shapes_types_and_every_tensor_of_a_nest():
    x = torch.arange(10_000.0)
    assert sketch(x) == sketch(x.clone())
    for other in (x + 1, x.reshape(100, 100), x.double(), x[:-1]):
        assert sketch(x) != sketch(other)
    weights = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).state_dict()
    changed = {name: value.clone() for name, value in weights.items()}
    changed["1.bias"][1] += 1e-6
    assert sketch(weights) != sketch(changed)
    sparse = torch.eye(4).to_sparse()
    assert sketch(sparse) == sketch(torch.eye(4).to_sparse())
    assert sketch(sparse) != sketch((2 * torch.eye(4)).to_sparse())
    assert sketch(torch.empty(3, device="meta")) == sketch(torch.empty(3, device="meta"))
    assert sketch(Batches([1], 1).dataset) == sketch([1])
