"""One run at a time in a folder, whoever it was that ran there before."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Distiller, Objective, fit
from potstill.core.errors import CheckpointError
from potstill.core.files import machine
from potstill.core.store import lock
from potstill.core.store.lock import Lock

HOLD = """
import os, sys, time
from pathlib import Path
from potstill.core.store.lock import Lock
with Lock(Path(sys.argv[1])):
    if os.fork():  # the child is as a data worker: it must not keep what its parent held
        print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


class Fitted(Distiller):
    def forward(self, batch, step):
        return self.objective(step, task=(self.student(batch), batch))


def train(folder, **options):
    distiller = Fitted(nn.Linear(1, 1), Objective(task=(1.0, F.mse_loss)))
    return fit(distiller, [torch.ones(1, 1)], steps=2, run=folder, progress=False, **options)


def test_a_second_run_is_refused_by_name_until_the_first_is_killed(tmp_path, other):
    with pytest.raises(CheckpointError, match=f"another run writes into .*process {other.pid} on "):
        train(tmp_path)
    with pytest.raises(CheckpointError, match=r"delete .*run\.lock"), Lock(tmp_path):
        pass
    other.kill()
    other.wait()
    assert len(train(tmp_path)) == 2
    assert not (tmp_path / "run.lock").exists()


def test_the_holder_may_enter_again_another_thread_may_not(tmp_path):
    caught = []

    def elsewhere():
        try:
            with Lock(tmp_path):
                pass
        except CheckpointError as error:
            caught.append(str(error))

    with Lock(tmp_path):
        with Lock(tmp_path):
            pass
        assert (tmp_path / "run.lock").exists()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in caught[0]
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize(
    ("owner", "free"),
    [
        ({"machine": machine(), "process": os.getppid()}, False),
        ({"machine": machine(), "process": os.getpid()}, True),  # of an earlier life of pid 1
        ({"machine": machine(), "process": 2**22 + 1}, True),
        ({"machine": "00000000", "process": 2**22 + 1}, False),
        ({}, True),
        ({"machine": machine(), "process": 2**70}, True),  # of no run: nobody can have it
        ({"machine": machine(), "process": os.getppid(), "began": 1e300}, True),
        ({"deep": "[" * 4000}, True),
    ],
)
def test_where_the_file_system_has_no_locks_the_owner_decides(tmp_path, monkeypatch, owner, free):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    about = {"host": "node7", "began": 86400.0, **owner} if owner else {}
    (tmp_path / "run.lock").write_text(owner.get("deep") or json.dumps(about))
    if free:
        with Lock(tmp_path):
            pass
    else:
        with pytest.raises(CheckpointError, match=r"on node7, since 19.*run\.lock"), Lock(tmp_path):
            pass
        assert json.loads((tmp_path / "run.lock").read_text())["host"] == "node7"
