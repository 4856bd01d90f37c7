"""The commands in the READMEs of packages that take folders of images, one after another, tiny."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workspace import ROOT

from potstill.core.command.cli import main

NETWORKS = "--network.student 8 --steps 4 --batch 4 --device cpu"
SHORT = {  # what follows each verb, in the order of the README
    "audit": {
        "backdoor": f"--seeds 1 --network.teacher 16 {NETWORKS}",
        "privacy": f"--canaries 20 --insert 4 --network.teacher 16 {NETWORKS}",
        "inspect": f"--count 4 {NETWORKS}",
    },
    "condense": {
        "condense": "--network convnet-1-2-instance --steps 2 --device cpu",
        "evaluate": "--repeats 1 --steps 2 --full-steps 2 --device cpu",
    },
    "flow": {
        "train-teacher": "--widths 8 8 --steps 2 --batch 4 --device cpu",
        "distill": "--steps 2 --batch 4 --device cpu",
        "sample": "",
        "evaluate": "--samples 8 --steps 2 --device cpu",
    },
}


@pytest.mark.parametrize("package", SHORT)
def test_the_commands_of_the_readme(package, tmp_path, monkeypatch) -> None:
    if package == "flow":
        pytest.importorskip("diffusers")
    text = (ROOT / "packages" / package / "README.md").read_text(encoding="utf-8")
    commands = re.findall(rf"^potstill ({package} .+)$", text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part in [""] if package == "audit" else ["train", "test"]:
        for number in range(48):
            path = Path("photos", part, "ab"[number % 2], f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    for command in commands:
        words = command.split()
        code = main([*words, *SHORT[package][words[1]].split()])
        assert code in ((0, 1) if "--check" in words else (0,)), command  # 1: past its limit
    assert [command.split()[1] for command in commands] == list(SHORT[package])
