"""What every domain does on a GPU, seen without one: nothing may be left behind on the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("job", ["core", "graph", "mirage", "sr", "mae", "acm", "nerf"])
def test_nothing_is_left_on_the_cpu(job):
    done = python("-m", "tests.devices.jobs", job)
    assert done.returncode == 0, done.stderr[-3000:]
