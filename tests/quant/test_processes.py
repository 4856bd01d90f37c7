"""Two processes train a low-bit student as one does; in a fresh interpreter, which may fork."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Batches, Engine, Objective, fit
from potstill.core.engine import run_ranks
from potstill.core.schemes import LogitDistiller
from potstill.quant import Grid, lower


def losses(batch: int) -> list[float]:
    """Of a 2-bit student with its full-precision self as teacher; batches of each process."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(32, 4)
    objective = Objective(match=(1.0, lambda s, t, y: F.mse_loss(s, t)))
    distiller = LogitDistiller(lower(plain, Grid(2)), objective, plain)
    data = Batches(list(zip(x, x[:, :3].argmax(1), strict=True)), batch)
    with Engine(device="cpu") as engine:
        history = fit(distiller, data, steps=6, lr=1e-2, engine=engine, progress=False)
    return [row["loss"] for row in history]


def compare() -> None:
    alone = losses(8)
    for curve in run_ranks(losses, 2, 4):
        torch.testing.assert_close(curve, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.dist
def test_two_processes_give_the_curve_of_one() -> None:
    """Here an export may have started threads of autograd, which a fork does not survive."""
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    compare()
