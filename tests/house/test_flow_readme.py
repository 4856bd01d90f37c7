"""The commands in the README of flow, one after another, on a handful of tiny images."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workspace import ROOT

from potstill.core.command.cli import main

pytest.importorskip("diffusers")
README = ROOT / "packages/flow/README.md"
COMMANDS = re.findall(r"^potstill (flow .+)$", README.read_text(encoding="utf-8"), re.MULTILINE)
SHORT = {
    "train-teacher": "--widths 8 8 --steps 2 --batch 4",
    "distill": "--steps 2 --batch 4",
    "sample": "",
    "evaluate": "--samples 8 --steps 2",
}


def test_the_commands_of_the_readme(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for number in range(12):
            path = Path("photos", part, "ab"[number % 2], f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    for command in COMMANDS:
        words = command.split()
        device = [] if words[1] == "sample" else ["--device", "cpu"]
        assert main([*words, *SHORT[words[1]].split(), *device]) == 0, command
    assert [command.split()[1] for command in COMMANDS] == list(SHORT)
    assert Path("samples.png").exists()
