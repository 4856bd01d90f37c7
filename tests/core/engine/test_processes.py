"""Two processes give the curve of one, under DDP and FSDP2, also over a change of terms."""

import os
import resource
import signal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing import ProcessExitedException

from potstill.core import Batches, Distiller, Engine, Objective, Stage, Validation, after, fit
from potstill.core.engine import Run, run_ranks
from potstill.core.errors import DataError
from potstill.core.store import checkpoint

pytestmark = pytest.mark.dist


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(6, 4)

    def forward(self, s, t):
        return F.mse_loss(self.map(s), t)


class Match(Distiller):
    def forward(self, batch, step):
        x, y = batch
        z = self.student(x)
        return self.objective(step, task=(z[:, :1], y), late=(z, self.teacher(x)))


def train(batch_size, parallel="ddp", folder=None, steps=12, accumulate=1, stages=False):
    torch.manual_seed(0)
    x = torch.randn(40, 5)
    y = x[:, :1] * 2 + 1
    distiller = Match(
        nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6)),
        Objective(task=(1.0, F.mse_loss), late=(after(5, 0.5), Projected())),
        teacher=nn.Linear(5, 4),
    )
    plan = (Stage(steps=6), Stage(steps=6, trainable=["student.2.*"], lr=0.01)) if stages else ()
    with Engine(device="cpu", parallel=parallel) as engine:
        history = fit(
            distiller,
            Batches(list(zip(x, y, strict=True)), batch_size),
            steps=None if stages else steps,
            stages=plan,
            lr=0.05,
            clip=1.0,
            accumulate=accumulate,
            validation=Validation(lambda s: float(s(x[:1]).sum()), every=4, mode="min"),
            run=folder,
            engine=engine,
            progress=False,
        )
    return [row["loss"] for row in history]


@pytest.fixture(scope="module")
def alone():
    return train(8)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_give_the_curve_of_one(alone, parallel):
    for curve in run_ranks(train, 2, 4, parallel):
        torch.testing.assert_close(curve, alone, rtol=1e-5, atol=1e-6)


def test_accumulation_gives_the_curve_of_one_large_batch():
    large = train(8)
    curve = [row for row in train(4, accumulate=2)]
    assert len(curve) == len(large)
    # An epoch's permutation is cut into the same sets: 2 micro-batches of 4 are one batch of 8.
    torch.testing.assert_close(curve, large, rtol=1e-5, atol=1e-6)


def test_two_processes_accumulate_and_change_stages_like_one():
    one = train(4, accumulate=2, stages=True)
    for curve in run_ranks(train, 2, 2, "ddp", None, 12, 2, True):
        torch.testing.assert_close(curve, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_resume(alone, parallel, tmp_path):
    run_ranks(train, 2, 4, parallel, str(tmp_path), 7)
    for curve in run_ranks(train, 2, 4, parallel, str(tmp_path), 12):
        torch.testing.assert_close(curve, alone, rtol=1e-5, atol=1e-6)
    for curve in run_ranks(train, 2, 4, parallel, str(tmp_path), 12):  # finished: read back
        torch.testing.assert_close(curve, alone, rtol=1e-5, atol=1e-6)


def killed(folder):
    """One of two is killed while the other one writes its part of the second checkpoint."""
    write, calls = checkpoint.write_shards, []

    def until(*arguments):
        if calls and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(write(*arguments))

    checkpoint.write_shards = until
    train(4, "fsdp", Run(folder, every=4))


def test_processes_that_share_the_weights_write_their_parts_and_survive_a_kill(alone, tmp_path):
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_ranks(killed, 2, str(tmp_path))
    (kept,) = checkpoint._all(tmp_path / "checkpoints")
    assert kept.name == "step-000000004"
    parts = [load_file(path) for path in sorted(kept.glob("parts/*"))]
    name = "module.student.0.weight"
    assert [part[name].shape for part in parts] == [(4, 5), (4, 5)]
    assert not [name for name in load_file(kept / "state.safetensors") if "student.0.weight" in name
                and "exp_avg" in name]  # fmt: skip
    for curve in run_ranks(train, 2, 4, "fsdp", str(tmp_path), 12):
        torch.testing.assert_close(curve, alone, rtol=1e-5, atol=1e-6)
    damaged = next(kept.parent.glob("*/parts/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert not checkpoint._is_whole(damaged.parents[1])


def full(folder):
    """The disk of the second process takes its history, and no part of a checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        train(4, "fsdp", Run(folder, every=4))
    except DataError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_for_one_process_ends_all(tmp_path):
    said = run_ranks(full, 2, str(tmp_path))
    assert all("could not write" in text and "free some space" in text for text in said), said
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_of_two_processes_continues_in_one(alone, tmp_path):
    run_ranks(train, 2, 4, "fsdp", str(tmp_path), 7)
    torch.testing.assert_close(train(8, folder=tmp_path), alone, rtol=1e-5, atol=1e-6)
