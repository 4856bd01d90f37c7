"""A run that is killed, at whatever moment, goes on to the same curve and the same weights."""

import json
import multiprocessing
import os
import random
import signal
import time
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from potstill.core import (
    Batches,
    Distiller,
    Engine,
    Objective,
    Run,
    Stage,
    Validation,
    cosine,
    fit,
)
from potstill.core.errors import CheckpointError, Interrupted
from potstill.core.store import checkpoint

FORK = multiprocessing.get_context("fork")  # children share the imports: kills are cheap


class Adaptive(nn.Module):
    """A criterion with a parameter and a buffer that counts."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, s, t):
        self.calls += 1
        return F.mse_loss(self.map(s), t) * (1 + 1 / self.calls)


class Match(Distiller):
    def forward(self, batch, step):
        x, y = batch
        z = self.student(x)
        return self.objective(step, task=(z[:, :1], y), hint=(z, self.teacher(x)))


def noisy(item, rng):
    return item[0] + 0.1 * torch.randn(5, generator=rng), item[1]


def train(
    folder, steps=120, every=1, seed=3, size=40, batch_size=7, workers=0, hint=1.0, fail=None
):
    """Everything that has state: order, augmentation, dropout, BatchNorm, Adam, EMA, stages."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(size, 5)
    distiller = Match(
        nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 6)
        ),
        Objective(task=(1.0, F.mse_loss), hint=(hint, Adaptive())),
        teacher=nn.Linear(5, 4),
    )

    def score(student):
        assert not student.training
        torch.rand(3), random.random()  # must not change what follows
        return {"error": float(F.mse_loss(student(x)[:, :1], x[:, :1]))}

    return fit(
        distiller,
        Batches(list(zip(x, x[:, :1], strict=True)), batch_size, augment=noisy, workers=workers),
        stages=(Stage(steps=steps // 2), Stage(steps=steps - steps // 2, lr=0.01)),
        lr=0.05,
        schedule=cosine(warmup=0.1),
        ema=0.9,
        clip=5.0,
        validation=Validation(score, every=3, mode="min"),
        run=Run(folder, every=every),
        seed=seed,
        progress=fail or False,
    )


def in_child(folder, **options):
    process = FORK.Process(target=train, args=(folder,), kwargs=options)
    process.start()
    return process


def outcome(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return rows, load_file(folder / "student.safetensors")


def assert_same(folder, expected):
    rows, weights = outcome(folder)
    assert rows == expected[0]
    assert all(torch.equal(weights[name], value) for name, value in expected[1].items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed run, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    begin = time.monotonic()
    process = in_child(folder)
    process.join(120)
    assert process.exitcode == 0
    return outcome(folder), time.monotonic() - begin


def test_twenty_kills_at_random_moments_change_nothing(whole, tmp_path):
    expected, duration = whole
    rng = random.Random(0)
    cut_off = 0
    for _ in range(20):
        process = in_child(tmp_path)
        time.sleep(rng.uniform(0, duration / 8))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        cut_off += not (tmp_path / "student.safetensors").exists()
    assert cut_off >= 5, "the run was over before it could be killed"
    process = in_child(tmp_path)
    process.join(120)
    assert process.exitcode == 0
    assert_same(tmp_path, expected)


def test_kills_before_the_first_checkpoint_and_with_workers(whole, tmp_path):
    for delay in (0.0, whole[1] / 2):
        process = in_child(tmp_path, every=10, workers=2)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    process = in_child(tmp_path, every=10, workers=2)
    process.join(120)
    assert process.exitcode == 0
    assert_same(tmp_path, whole[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_so(whole, tmp_path, number):
    def strike(row, share):
        if row["step"] == 5:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match="a checkpoint is in") as caught:
        train(tmp_path, every=None, fail=strike)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is handler
    assert checkpoint.newest(tmp_path / "checkpoints") is not None
    process = in_child(tmp_path, every=None)
    process.join(120)
    assert_same(tmp_path, whole[0])


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    first = train(tmp_path, steps=6)
    again = train(tmp_path, steps=6, fail=lambda *_: pytest.fail("a finished run took a step"))
    assert again == first


def test_damaged_checkpoints_are_passed_over(whole, tmp_path):
    train(tmp_path, every=5)
    older, newer = sorted((tmp_path / "checkpoints").iterdir())
    with (newer / "state.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"xyz")
    (tmp_path / "checkpoints" / ".writing-step-000000099-1").mkdir()
    assert checkpoint.newest(tmp_path / "checkpoints") == older
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(newer)
    train(tmp_path, every=5)
    assert_same(tmp_path, whole[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "another seed .3, now 4"),
        ({"size": 41}, r"another data .list of 40 items \w+, now list of 41 items"),
        ({"batch_size": 8}, r"another global batch .7, now 8."),
    ],
)
def test_a_run_of_something_else_is_refused(tmp_path, change, message):
    train(tmp_path, steps=4)
    with pytest.raises(CheckpointError, match=message):
        train(tmp_path, steps=4, **change)


def test_a_history_that_lost_rows_is_refused(tmp_path):
    train(tmp_path, steps=4)
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="has 0 rows, the checkpoint knows 4"):
        train(tmp_path, steps=4)


def test_the_state_keeps_types_and_refuses_what_could_hold_code(tmp_path):
    state = {"a": (1, [2.5, None, True]), "b": {0: torch.arange(3)}, "c": "x", "nan": float("nan")}
    path = checkpoint.save(tmp_path, 7, state)
    loaded = checkpoint.load(path)
    assert loaded["a"] == (1, [2.5, None, True])
    assert torch.equal(loaded["b"][0], torch.arange(3))
    assert loaded["nan"] != loaded["nan"]
    with pytest.raises(CheckpointError, match="state/f must be made of tensors.*function"):
        checkpoint.save(tmp_path, 8, {"f": noisy})
    assert checkpoint.newest(tmp_path) == path


class Layouts(nn.Module):
    """Weights as they come, transposed, and with channels last."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.plain, self.turned = nn.Linear(3, 4), nn.Linear(4, 3)
        self.turned.weight = nn.Parameter(self.turned.weight.detach().t().contiguous().t())

    def forward(self, x):
        return self.turned(self.plain(self.conv(x).transpose(1, 3)[..., :3]))


@pytest.mark.parametrize("how", ["fused", "foreach", "plain"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_moments_keep_the_layout_of_their_parameters(tmp_path, how, precision, name):
    """A fused kernel reads raw memory, so a resumed moment must lie as its parameter does."""
    options = {"foreach": False} if how == "plain" else {how: True}
    options |= {"momentum": 0.9} if name == "SGD" else {}
    optimizer = partial(getattr(torch.optim, name), **options)

    def run(folder, steps):
        torch.manual_seed(0)
        net, x = Layouts(), torch.randn(2, 3, 5, 5)
        distiller = Fitted(net, Objective(task=(1.0, F.mse_loss)))
        with Engine(device="cpu", precision=precision) as engine:
            fit(distiller, [x], steps=steps, lr=0.1, optimizer=optimizer, run=folder,
                engine=engine, progress=False)  # fmt: skip
        return net.state_dict()

    whole = run(None, 6)
    run(tmp_path, 3)
    resumed = run(tmp_path, 6)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


class Fitted(Distiller):
    def forward(self, batch, step):
        z = self.student(batch)
        return self.objective(step, task=(z, torch.ones_like(z)))
