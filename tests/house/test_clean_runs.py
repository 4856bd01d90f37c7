"""A clean run says nothing that was not asked for, and importing starts no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
from workspace import PACKAGES

NAMES = """
import importlib
package = importlib.import_module("potstill.{name}")
things = [getattr(package, name) for name in package.__all__]  # loads what is behind every name
import torch
assert things
assert not torch.cuda.is_initialized()
"""

RUN = """
import torch
import torch.nn.functional as F
from torch import nn
from potstill.core import Batches, Distiller, Objective, Report, fit
from potstill.core.criteria import kd

class LogitsToLogits(Distiller):
    def forward(self, batch, step):
        z_s, z_t = self.student(batch), self.teacher(batch)
        return self.objective(step, task=(z_s, z_t.argmax(1)), soft=(z_s, z_t))

objective = Objective(task=(0.1, F.cross_entropy), soft=(0.9, kd))
distiller = LogitsToLogits(nn.Linear(8, 3), objective, nn.Linear(8, 3))
batches = Batches(list(torch.randn(64, 8)), 16)
history = fit(distiller, batches, steps=6, run="run", progress=False)
report = Report("Clean")
report.add("student", loss=history[-1]["loss"])
report.save("report")
assert not torch.cuda.is_initialized()
"""


def said(*command: str, cwd: Path) -> str:
    """What a program says on standard error; a warning ends it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *command], capture_output=True, text=True, cwd=cwd
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_load_without_warning_or_gpu(name: str, tmp_path: Path) -> None:
    assert said("-c", NAMES.format(name=name), cwd=tmp_path) == ""


def test_a_run_warns_of_nothing(tmp_path: Path) -> None:
    assert said("-c", RUN, cwd=tmp_path) == ""
    assert (tmp_path / "run" / "history.jsonl").exists()


@pytest.mark.parametrize("words", [["--help"], ["env"], ["graph", "--help"]], ids=" ".join)
def test_commands_warn_of_nothing(words: list[str], tmp_path: Path) -> None:
    program = "import sys; from potstill.core.command import main; sys.exit(main(sys.argv[1:]))"
    assert said("-c", program, *words, cwd=tmp_path) == ""
