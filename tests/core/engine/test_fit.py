"""What fit promises one option at a time: against torch written out by hand where it can be."""

import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from potstill.core import (
    Batches,
    Distiller,
    Engine,
    Objective,
    Run,
    Stage,
    Validation,
    after,
    cosine,
    fit,
)
from potstill.core.engine.batches import Shard
from potstill.core.engine.source import as_source
from potstill.core.errors import BackendError, ConfigError, NonFiniteError


class Regression(Distiller):
    def forward(self, batch, step):
        x, y = batch
        return self.objective(step, task=(self.student(x), y))


def regression(**terms):
    torch.manual_seed(0)
    return Regression(nn.Linear(3, 1), Objective(task=(1.0, F.mse_loss), **terms))


def data(n=24):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    return x, x.sum(1, keepdim=True)


def by_hand(steps, lr, clip=None, factor=lambda p: 1.0, parts=1):
    student = regression().student
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9)
    x, y = data()
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor(step / steps)
        optimizer.zero_grad()
        loss = F.mse_loss(student(x), y)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(student.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses, student


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("schedule", [None, cosine(warmup=0.2)])
def test_it_is_the_loop_one_would_write(clip, schedule):
    distiller = regression()
    history = fit(
        distiller,
        [data()],
        steps=10,
        lr=0.1,
        optimizer=sgd,
        schedule=schedule,
        clip=clip,
        progress=False,
    )
    losses, student = by_hand(10, 0.1, clip, schedule or (lambda p: 1.0))
    assert [row["loss"] for row in history] == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(distiller.student.weight, student.weight)
    assert ("grad_norm" in history[0]) == (clip is not None)


def test_accumulation_averages_the_gradients_of_micro_batches():
    x, y = data()
    distiller = regression()
    parts = [(x[i::4], y[i::4]) for i in range(4)]
    fit(distiller, parts, steps=10, lr=0.1, optimizer=sgd, accumulate=4, progress=False)
    torch.testing.assert_close(distiller.student.weight, by_hand(10, 0.1)[1].weight)


def test_the_moving_average_is_what_stays():
    distiller, weights = regression(), []
    fit(
        distiller,
        [data()],
        steps=5,
        lr=0.1,
        ema=0.5,
        progress=lambda *_: weights.append(distiller.student.weight.detach().clone()),
    )
    average = weights[0]
    for weight in weights[1:]:
        average = 0.5 * average + 0.5 * weight
    torch.testing.assert_close(distiller.student.weight, average)


@pytest.mark.parametrize(("ties", "kept"), [("first", 1), ("latest", 3)])
def test_the_best_validated_weights_are_put_back(ties, kept):
    scores = iter([0.1, 0.7, 0.3, 0.7, float("nan"), 0.2])
    seen = []

    def score(student):
        seen.append(student.weight.detach().clone())
        return next(scores)

    distiller = regression()
    history = fit(
        distiller,
        [data()],
        steps=6,
        lr=0.1,
        validation=Validation(score, every=1, ties=ties),
        progress=False,
    )
    torch.testing.assert_close(distiller.student.weight, seen[kept], rtol=0, atol=0)
    assert [row["score"] for row in history[:4]] == [0.1, 0.7, 0.3, 0.7]


def test_it_stops_early_and_validates_the_last_step():
    rows = fit(
        regression(),
        [data()],
        steps=50,
        validation=Validation(lambda s: 0.0, every=2, patience=3),
        progress=False,
    )
    assert len(rows) == 8  # validated at 2 (best), then 4, 6, 8 without improvement
    rows = fit(
        regression(), [data()], steps=5, validation=Validation(lambda s: 0.0, 3), progress=False
    )
    assert ["score" in row for row in rows] == [False, False, True, False, True]


def test_stages_have_their_own_objective_parameters_rate_and_step():
    seen = []

    class Watch(Regression):
        def forward(self, batch, step):
            seen.append((step, self.objective.names))
            return super().forward(batch, step)

    torch.manual_seed(0)
    distiller = Watch(nn.Linear(3, 1), Objective(task=(1.0, F.mse_loss)))
    bias, weight = distiller.student.bias.clone(), distiller.student.weight.clone()
    second = Objective(task=(1.0, F.l1_loss), later=(after(9, 1.0), F.l1_loss))
    changes = []
    rows = fit(
        distiller,
        [data()],
        stages=(
            Stage(steps=2, trainable=["*.weight"]),
            Stage(steps=3, objective=second, trainable=lambda n: n.endswith("bias"), lr=0.5),
        ),
        lr=0.1,
        progress=lambda *_: changes.append(
            (
                not torch.equal(distiller.student.weight, weight),
                not torch.equal(distiller.student.bias, bias),
            )
        ),
    )
    assert [step for step, _ in seen] == [0, 1, 0, 1, 2]
    assert [names for _, names in seen[1:3]] == [("task",), ("task", "later")]
    assert changes[1] == (True, False)
    assert changes[2] == (True, True)
    assert [row["stage"] for row in rows] == [0, 0, 1, 1, 1]
    assert [row["lr"] for row in rows] == [0.1, 0.1, 0.5, 0.5, 0.5]
    assert distiller.objective.names == ("task",)
    assert all(p.requires_grad for p in distiller.parameters())


def test_stages_may_be_shares_of_a_budget_in_steps_or_seconds():
    stages = (Stage(share=0.25), Stage(share=0.75))
    rows = fit(regression(), [data()], steps=8, stages=stages, progress=False)
    assert [row["stage"] for row in rows] == [0] * 2 + [1] * 6
    rows = fit(regression(), [data()], seconds=0.3, stages=stages, progress=False)
    first = [row["seconds"] for row in rows if row["stage"] == 0]
    assert 0 < max(first) < 0.3
    assert rows[-1]["seconds"] >= 0.3
    assert rows[-1]["stage"] == 1


def test_a_budget_of_both_ends_with_the_first():
    assert len(fit(regression(), [data()], steps=3, seconds=60, progress=False)) == 3
    assert len(fit(regression(), [data()], steps=10**9, seconds=0.1, progress=False)) < 10**9


def test_neither_validation_nor_draws_in_it_change_the_result():
    def run(validation):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        distiller = Regression(student, Objective(task=(1.0, F.mse_loss)))
        return [
            row["loss"]
            for row in fit(distiller, [data()], steps=6, validation=validation, progress=False)
        ]

    assert run(None) == run(Validation(lambda s: float(torch.rand(())), every=1))


def test_bf16_trains_the_same_program():
    with Engine(device="cpu", precision="bf16") as engine:
        distiller = regression()
        low = fit(distiller, [data()], steps=20, lr=0.1, engine=engine, progress=False)
    full = fit(regression(), [data()], steps=20, lr=0.1, progress=False)
    assert distiller.student.weight.dtype == torch.float32
    assert low[-1]["loss"] == pytest.approx(full[-1]["loss"], rel=0.1)
    assert low[3]["loss"] != full[3]["loss"]


def test_a_loss_that_is_not_finite_names_term_step_and_samples():
    x, y = data()
    x[5] = float("nan")
    dataset = list(zip(x, y, strict=True))
    batches = Batches(dataset, 4, shuffle=False)
    with pytest.raises(NonFiniteError) as caught:
        fit(regression(), batches, steps=6, progress=False)
    assert "at step 1, from task (task=nan); samples [4, 5, 6, 7]" in str(caught.value)
    bad = Objective(task=(1.0, F.mse_loss), other=(1.0, lambda *_: torch.tensor(math.inf)))

    class Two(Distiller):
        def forward(self, batch, step):
            z = self.student(batch[0])
            return self.objective(step, task=(z, batch[1]), other=())

    with pytest.raises(NonFiniteError, match=r"from other \(task=[0-9.]+, other=inf\)"):
        fit(Two(nn.Linear(3, 1), bad), [data()], steps=1, progress=False)


def test_the_folder_of_a_run_holds_history_curves_and_weights(tmp_path, curves):
    rows = fit(
        regression(),
        [data()],
        steps=4,
        run=Run(tmp_path, tensorboard=True),
        validation=Validation(lambda s: {"a": 1.0, "b": 2.0}, every=2, key="b"),
        progress=False,
    )
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    with Image.open(tmp_path / "curves.png") as picture:
        assert (picture.format, picture.width > 600) == ("PNG", True)
    assert list((tmp_path / "tensorboard").iterdir())
    assert (tmp_path / "student.safetensors").exists()


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr("potstill.core.engine.history._INTERVAL", 0.0)
    fit(regression(), [data()], steps=2, progress="teacher")
    assert "teacher:  50% step 0 loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a budget"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"seconds": -1.0}, "seconds must be positive"),
        ({"steps": 1, "lr": 0.0}, "lr must be positive"),
        ({"steps": 1, "accumulate": 0}, "accumulate must be at least 1"),
        ({"steps": 1, "ema": 1.0}, "ema must be in"),
        ({"stages": [Stage(steps=2), Stage(share=0.5)]}, "got a mixture"),
        ({"steps": 5, "stages": [Stage(steps=2)]}, "steps must be 2, the sum"),
        ({"steps": 5, "stages": [Stage(share=0.4)]}, "must sum to 1, got 0.4"),
        ({"steps": 1, "stages": [Stage(share=1.0, trainable=["x*"])]}, "has nothing to train"),
        ({"steps": 1, "validation": Validation(lambda s: {"a": 1.0}, 1, key="z")}, "'z' is not"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        fit(regression(), [data()], progress=False, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Stage(), "give steps or share"),
        (lambda p: Stage(steps=0), "at least 1"),
        (lambda p: Stage(share=2.0), r"\(0, 1\]"),
        (lambda p: Validation(len, every=0), "every must be"),
        (lambda p: Validation(len, 1, patience=0), "patience must be"),
        (lambda p: Validation(len, 1, mode="up"), "mode must be max or min"),
        (lambda p: Run(p, keep=0), "keep must be"),
        (lambda p: Run(p, every=0), "every must be"),
        (lambda p: Run(__file__), "must be a folder"),
        (lambda p: ((p / "checkpoints").mkdir(), Run(p, resume=False)), "already holds a run"),
        (lambda p: Engine(precision="fp8"), "precision must be"),
        (lambda p: Engine(parallel="tp"), "parallel must be"),
        (lambda p: Engine(device="cuda:1"), "CUDA_VISIBLE_DEVICES"),
        (lambda p: Batches([], 1), "at least one batch of 1 items, got 0"),
        (lambda p: Batches([1, 2], 3), "lower batch_size"),
        (lambda p: Batches([1], 0), "batch_size must be at least 1"),
        (lambda p: Batches([1, 2, 3], 2).steps_per_epoch(2), "exceed the 3 items"),
        (lambda p: Batches([1, 2, 3], 2, drop_last=False).steps_per_epoch(2), "equal batches"),
        (lambda p: as_source([]), "batches must be"),
        (lambda p: as_source(torch.zeros(3, 2)), "a dataset of single items"),
    ],
)
def test_parts_that_cannot_work_are_refused(make, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused_before_anything_starts():
    with pytest.raises(BackendError, match="device=.cuda. was requested, but no CUDA device"):
        Engine(device="cuda")
    with pytest.raises(BackendError, match="fp16 needs a GPU"):
        Engine(device="cpu", precision="fp16")


def test_the_order_of_the_data_is_a_pure_function():
    batches = Batches(range(23), 4)
    epoch = [batches.indices(k, Shard(seed=1)) for k in range(5)]
    assert len({i for chunk in epoch for i in chunk}) == 20
    assert epoch != [batches.indices(k, Shard(seed=2)) for k in range(5)]
    assert epoch != [batches.indices(k + 5, Shard(seed=1)) for k in range(5)]
    for k, chunk in enumerate(epoch[:4]):
        halves = [Batches(range(23), 2).indices(k, Shard(1, rank, 2)) for rank in (0, 1)]
        assert sorted(halves[0] + halves[1]) == sorted(chunk)
    late = batches.stream(3, Shard(seed=1))
    assert [next(late).tolist() for _ in range(3)] == [
        batches.indices(k, Shard(seed=1)) for k in (3, 4, 5)
    ]


def test_an_order_is_drawn_once_an_epoch(monkeypatch):
    drawn, real = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: (drawn.append(a), real(*a, **k))[1])
    batches = Batches(range(23), 4)
    for k in range(10):
        batches.indices(k, Shard(seed=1))
    assert len(drawn) == 2
    assert pickle.loads(pickle.dumps(batches))._order is None


def test_the_last_batch_may_be_short_and_the_order_kept():
    batches = Batches(range(5), 2, shuffle=False, drop_last=False)
    source = batches.stream(0, Shard())
    assert [next(source).tolist() for _ in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]
    assert len(batches) == 3


def test_a_function_of_the_step_and_ready_batches_are_sources():
    drawn = as_source(lambda step, rank, world: (step, rank, world)).stream(7, Shard(0, 1, 2))
    assert [next(drawn), next(drawn)] == [(7, 1, 2), (8, 1, 2)]
    ready = as_source(["a", "b", "c"]).stream(1, Shard(0, 1, 2))
    assert [next(ready) for _ in range(3)] == ["a", "c", "b"]


def test_the_clock_may_be_any_and_the_distiller_knows_the_progress():
    ticks = iter(range(1000))  # a second a look: one to begin with, then one a step
    seen = []
    distiller = regression()
    forward = distiller.forward

    def watched(batch, step):
        seen.append(distiller.progress)
        return forward(batch, step)

    distiller.forward = watched
    rows = fit(distiller, [data()], seconds=4, clock=lambda: next(ticks), progress=False)
    assert [row["seconds"] for row in rows] == [1, 2, 3, 4]
    assert seen == [0, 0.25, 0.5, 0.75]
