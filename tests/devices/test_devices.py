"""What every domain does on a GPU, seen without one: nothing may be left behind on the CPU."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MIXED = """
import torch
from tests.devices.pretend import pretend_gpu
with pretend_gpu() as gpu:
    model = torch.nn.Linear(2, 2).to(gpu)
    assert model(torch.ones(1, 2, device=gpu)).device == gpu
    model(torch.ones(1, 2))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_pretended_gpu_refuses_tensors_of_the_cpu():
    done = python("-c", MIXED)
    assert done.returncode != 0
    assert "on the GPU and [[1, 2]] on the CPU" in done.stderr


WAITS = """
import torch
from tests.devices.pretend import pretend_gpu
from tests.devices.syncs import counted
from potstill.core import Distiller, Objective, accuracy, fit

class Waiting(Distiller):
    def forward(self, batch, step):
        self.student.bias.data += accuracy(self.student(batch[0]), batch[2])  # a number for Python
        return self.objective(step, task=(self.student(batch[0]), batch[1]))

data = [(torch.ones(4, 2), torch.ones(4, 1), torch.zeros(4, dtype=torch.long))]
with pretend_gpu() as gpu, counted(gpu) as syncs:
    objective = Objective(task=(1.0, torch.nn.functional.mse_loss))
    fit(Waiting(torch.nn.Linear(2, 1), objective), data, steps=3, progress=False)
found = syncs.each_step()["Waiting"]
assert found["core/measure/metrics.py:accuracy"] == 1, found
"""


def test_waits_are_counted():
    done = python("-c", WAITS)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_step_of_core_waits_twice():
    done = python("-m", "tests.devices.jobs", "core")
    assert done.returncode == 0, done.stderr[-3000:]
