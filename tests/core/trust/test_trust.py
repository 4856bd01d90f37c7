"""The proof sees what it is made for: each fault is planted, and none where there is none."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

from potstill.core import Batches, Distiller, Engine, Objective, PotstillError, Run, fit
from potstill.core.command.cli import main
from potstill.core.trust import prove
from potstill.core.trust.compare import differences, unsaved

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs the signals of POSIX")


class Pictures(Distiller):
    """A convolution in channels-last, a third of whose labels are ignored."""

    def forward(self, batch, step):
        x, y = batch
        time.sleep(0.004)  # so that signals meet it, not what is before and after
        return self.objective(step, task=(self.student(x).mean((2, 3)), y))


def train(words, criterion=F.cross_entropy, workers=0):
    """A command: 40 steps with checkpoints, that ends as every job ends."""
    out, batch = Path(words[0]), int(words[1])
    torch.manual_seed(0)
    student = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    x, y = torch.randn(48, 4, 6, 6), torch.arange(48) % 6
    y[:16] = -100
    distiller = Pictures(student, Objective(task=(1.0, criterion)))
    try:
        with Engine("cpu") as engine:
            fit(
                distiller, Batches(TensorDataset(x, y), batch, workers=workers), steps=40,
                progress=False, engine=engine, run=Run(out, every=2), lr=0.01,
                optimizer=lambda named, lr: torch.optim.Adam([p for _, p in named], lr, fused=True),
            )  # fmt: skip
    except PotstillError as error:
        sys.stderr.write(f"{error}\n")
        return getattr(error, "exit_code", 1)
    return 0


def unmasked(logits, labels):
    """The loss without a word about which labels it counts."""
    return F.cross_entropy(logits, labels)


def proof(tmp_path, call=train, **options):
    settings = {"kills": (0,), "disks": 0, "neighbours": 0, "limit": 60.0, **options}
    return prove(["{out}", "{share:8}"], tmp_path / "proof", call=call, **settings)


def test_killed_runs_end_as_runs_that_are_let_alone(tmp_path):
    found = proof(tmp_path, partial(train, workers=1), kills=(4,))
    assert found.lost == []
    assert sum(case.times for case in found.cases) == 2 + 4
    assert all(len(line) <= 80 for line in found.table())


def test_contiguous_moments_are_caught(tmp_path, monkeypatch):
    from potstill.core.engine import device

    monkeypatch.setattr(device, "_lay_out_like_parameters", lambda optimizer: None)
    assert "tensors differ" in " ".join(proof(tmp_path, kills=(3,)).lost)


@pytest.mark.dist
def test_a_mean_over_what_each_process_has_is_caught(tmp_path):
    """A mask that is dropped, so that each process counts for itself."""
    masked = proof(tmp_path / "masked", processes=(1, 2), across=1e-5)
    assert masked.lost == []
    assert masked.apart[2] < 1e-5
    dropped = proof(tmp_path, partial(train, criterion=unmasked), processes=(1, 2), across=1e-5)
    assert "from 1 process(es)" in dropped.lost[0]


SCRIPT = """
import json, os, pathlib, sys, time
out, careful = pathlib.Path(sys.argv[2]), sys.argv[3] == "careful"
out.mkdir(parents=True, exist_ok=True)
state, new = out / "state.json", out / "state.json.new"
done = json.loads(state.read_text())["done"] if state.exists() else []
try:
    while len(done) < 30:
        done.append(len(done) ** 2)
        (new if careful else state).write_text(json.dumps({"done": done, "fat": "x" * 9000}))
        if careful:
            os.replace(new, state)
        time.sleep(0.004)
except OSError as error:
    sys.exit(f"no room for the state: {error}")
finally:
    new.unlink(missing_ok=True)
"""


def script(tmp_path, how):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return [sys.executable, str(path), "--out", "anywhere", how]


def test_a_program_that_writes_with_care_loses_nothing(tmp_path, capsys):
    command = script(tmp_path, "careful")
    words = ["--kills", "4", "--disks", "1", "--neighbours", "0", "--out", str(tmp_path / "proof")]
    assert main(["trust", *words, "--leave-out", "*.new", "--", *command]) == 0
    said = capsys.readouterr().out
    assert "what was tried" in said
    assert "small disk" in said
    assert all(len(line) <= 80 for line in said.split("what was tried")[1].splitlines())


def test_a_file_that_is_half_written_is_caught(tmp_path, capsys):
    words = ["--kills", "0", "--neighbours", "0", "--out", str(tmp_path / "proof")]
    assert main(["trust", *words, "--", *script(tmp_path, "careless")]) == 1
    assert "could not be continued" in capsys.readouterr().out
    assert (tmp_path / "proof" / "lost-1" / "state.json").exists()


def test_a_second_run_that_is_not_refused_is_caught(tmp_path, capsys):
    words = ["--kills", "0", "--disks", "0", "--out", str(tmp_path / "proof")]
    assert main(["trust", *words, "--", *script(tmp_path, "careful")]) == 1
    assert "it was not refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((), "must have its folder in it"),
        (("potstill", "graph", "train"), "must have its folder in it"),
        (("sh", "-c", "echo no such thing; exit 3", "{out}"), "got 3: no such thing"),
    ],
)
def test_a_command_that_cannot_be_tried_is_refused(tmp_path, capsys, command, message):
    assert main(["trust", "--out", str(tmp_path), "--", *command]) == 2
    assert message in capsys.readouterr().err


def test_folders_are_compared_by_what_they_hold(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, seconds in ((one, 1.0), (other, 2.0)):
        (folder / "checkpoints" / f"step-{seconds}").mkdir(parents=True)
        (folder / "checkpoints" / f"step-{seconds}" / "x").touch()
        (folder / "result.json").write_text(json.dumps({"loss": 1.5, "seconds": seconds}))
        save_file({"w": torch.tensor([1.0, float("nan")])}, folder / "w.safetensors")
        (folder / "page.html").write_text(f"{seconds} s")
    assert differences(one, other, ["seconds"], ["*.html"]) == []
    assert differences(one, other, [], ["page*"]) == [
        "result.json: 1 values differ, first value seconds (1.0, now 2.0)"
    ]
    save_file({"w": torch.tensor([1.25, float("nan")])}, other / "w.safetensors")
    (other / ".result.json.tmp").touch()
    (other / "page.html").unlink()
    assert differences(one, other, ["seconds"], []) == [
        "page.html is missing",
        ".result.json.tmp is left over",
        "w.safetensors: 1 of 1 tensors differ, w by inf",
    ]


def test_steps_in_no_checkpoint_are_counted(tmp_path):
    (tmp_path / "part" / "checkpoints" / "step-000000002").mkdir(parents=True)
    (tmp_path / "part" / "history.jsonl").write_text("{}\n" * 5)
    assert unsaved(tmp_path) == 3
