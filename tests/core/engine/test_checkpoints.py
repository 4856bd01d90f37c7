"""What a checkpoint costs: no copy in memory, one reading, and no waiting if that is wanted."""

import hashlib
import multiprocessing
import os
import signal
import threading
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import DataError, Distiller, Objective
from potstill.core.engine import Run, Validation
from potstill.core.engine.fit import _Loop, fit
from potstill.core.store import checkpoint

FORK = multiprocessing.get_context("fork")


class Fitted(Distiller):
    def forward(self, batch, step):
        return self.objective(step, task=(self.student(batch[0]), batch[1]))


def train(folder, side=4, **options):
    torch.manual_seed(0)
    student = nn.Linear(side, side, bias=False)
    batch = torch.ones(1, side), torch.zeros(1, side)
    run = Run(folder, every=options.pop("every", 2), asynchronous=options.pop("behind", False))
    distiller = Fitted(student, Objective(task=(1.0, F.mse_loss)))
    options = {"steps": 6, "lr": 0.1, "progress": False, **options}
    return fit(distiller, [batch], run=run, **options)


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="asks Linux")
def test_a_save_copies_nothing(tmp_path, monkeypatch, curves):
    grown = []

    def measured(call, loop):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before = psutil.Process().memory_info().rss
        call(loop)
        grown.append(peak() - before)

    for call in (_Loop._save, _Loop._finish):
        monkeypatch.setattr(_Loop, call.__name__, lambda loop, call=call: measured(call, loop))
    sgd = partial(torch.optim.SGD, momentum=0.9)
    train(tmp_path, side=4096, steps=1, every=1, optimizer=sgd)  # 64 MiB, and as much of momentum
    *saves, end = grown  # the end draws curves
    assert (len(saves), max(saves) < 8 << 20, end < 48 << 20) == (2, True, True), grown


def test_a_checkpoint_is_read_once(tmp_path, monkeypatch):
    train(tmp_path)
    read, digest = [], hashlib.file_digest

    def counted(file, kind):
        read.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(checkpoint.hashlib, "file_digest", counted)
    train(tmp_path)  # finished: looks, and saves nothing anew
    assert sorted(read) == ["state.json", "state.safetensors"]


def same(one, other):
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    for name in names:
        if name.suffix == ".safetensors":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def adam(named, lr):
    return torch.optim.Adam(named, lr=lr)


def test_asynchronous_checkpoints_are_the_same_and_train_goes_on(tmp_path, monkeypatch):
    options = {"optimizer": adam, "ema": 0.9, "validation": Validation(lambda s: 1.0, every=3)}
    train(tmp_path / "waits", **options)
    write, steps, going = checkpoint._write, [], threading.Event()

    def slow(folder, *args):
        assert going.wait(60)  # until training went on
        write(folder, *args)

    def progress(row, share):
        steps.append(row["step"])
        if len(steps) == 4:
            assert checkpoint.newest(tmp_path / "runs" / "checkpoints") is None
            going.set()

    monkeypatch.setattr(checkpoint, "_write", slow)
    train(tmp_path / "runs", behind=True, **{**options, "progress": progress})
    same(tmp_path / "waits", tmp_path / "runs")


def test_a_full_disk_is_told_though_nobody_waited(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", str(tmp_path / "checkpoints" / "x"))

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(DataError, match="No space left"):
        train(tmp_path, behind=True)
    assert not list((tmp_path / "checkpoints").glob("*"))


def killed(folder, options):
    """A run that dies while its second checkpoint is half written."""
    write, torch_threads = checkpoint._write, torch.set_num_threads
    torch_threads(1)

    def dying(temporary, tree, tensors, step):
        write(temporary, tree, tensors, step)
        if step == 4:
            (temporary / "manifest.json").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint._write = dying
    train(folder, behind=True, **options)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    options = {"optimizer": adam}
    process = FORK.Process(target=killed, args=(tmp_path / "killed", options))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint.newest(tmp_path / "killed" / "checkpoints").name == "step-000000002"
    train(tmp_path / "killed", behind=True, **options)
    train(tmp_path / "whole", **options)
    same(tmp_path / "whole", tmp_path / "killed")
