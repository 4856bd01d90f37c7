"""The commands in the README of acm, one after another, on a handful of tiny images."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workspace import ROOT

from potstill.core.command.cli import main

SMALL = ["--model", "vit_tiny_patch16_224", "--size", "16", "--patch", "4", "--width", "24",
         "--depth", "2", "--heads", "3", "--classes", "2", "--pool", "avg"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = folder / ("light" if i % 2 else "dark") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        values = rng.integers(0, 120, (16, 16, 3)) + 130 * (i % 2)
        Image.fromarray(values.astype(np.uint8)).save(path)
    return folder


SHORT = ["--distill.epochs", "2", "--gate.epochs", "2", "--finetune.epochs", "2",
         "--batch", "8", "--device", "cpu"]  # fmt: skip


README = ROOT / "packages/acm/README.md"
COMMANDS = re.findall(r"^potstill (acm .+)$", README.read_text(encoding="utf-8"), re.MULTILINE)
SMALLER = {
    "--model vit_small_patch16_224 --pretrained": " ".join(SMALL),
    "--model vit_small_patch16_224 --batch 8": "--model vit_tiny_patch16_224 --batch 1 --budgets 1",
    "--milliseconds 8": "--milliseconds 1e4 --limit 2",
    ".onnx": ".pt2",
}
"""What makes a command of the README short, and free of downloads and of this machine's speed."""


def test_the_commands_of_the_readme(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = {}
    for command in COMMANDS:
        for long, short in {**SMALLER, "photos/train": str(data), "photos/val": str(data)}.items():
            command = command.replace(long, short)
        words = command.split() + (SHORT if command.startswith("acm distill") else [])
        assert main(words) == 0, command
        said[words[1]] = capsys.readouterr().out
    assert list(said) == ["convert", "distill", "calibrate", "fit", "profile", "export", "time"]
    assert "dense MMACs" in said["convert"]
    assert "phase 3 loss" in said["distill"]
    assert json.loads(Path("runs/trained/result.json").read_text())["steps"] == 3 * 2 * 3
    assert "tilt" in said["calibrate"]
    config = json.loads(Path("runs/b/config.json").read_text())
    assert config["budget"] == 0.35
    assert config["phases"] == ["distill", "gate", "finetune"]
    assert config["classes"] == ["dark", "light"]
    assert "time over all learners" in said["fit"]
    modes = json.loads(Path("runs/c/config.json").read_text())["modes"]
    assert modes == {"blocks.0.mlp": 4, "blocks.1.mlp": 4}
    assert all(word in said["profile"] for word in ("gated", "fitted", "k = 4", "dense"))
    assert Path("runs/page/index.html").stat().st_size > 10_000
    assert Path("student.pt2").exists()
    assert "dense ms" in said["time"]
    assert Path("runs/time/plot-1.png").exists()
