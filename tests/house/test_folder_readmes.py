"""The commands in the READMEs of packages that take folders of images, one after another, tiny."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workspace import ROOT

from potstill.core.command.cli import main
from potstill.sr import load_model, save_model

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
}


@pytest.mark.parametrize("package", SHORT)
def test_the_commands_of_the_readme(package, tmp_path, monkeypatch) -> None:
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


TINY = {
    "graph distill": "--seeds 1 --epochs 2 --hidden 8 --methods glnn --device cpu",
    "nerf train": "--downsample 4 --steps 2 --samples 200 --occupancy 8 --device cpu",
    "nerf eval": "--device cpu",
    "nerf render": "--frames 2 --width 8 --device cpu",
    "nerf export": "--count 8 --device cpu",
    "nerf convert": "--steps 2 --batch 64 --samples 64 --device cpu",
    "sr train": "--steps 2 --patch 8 --batch 1 --device cpu",
    "sr distill": "--steps 2 --patch 8 --batch 1 --device cpu",
    "sr upscale": "--device cpu",
}


@pytest.mark.parametrize("package", ["graph", "nerf", "sr"])
def test_the_commands_of_readme_and_tutorial(package, tmp_path, monkeypatch) -> None:
    """Of a user with photographs, a scene and two tables; ``large.safetensors`` is what we ship."""
    pages = [ROOT / f"packages/{package}/README.md"]
    pages += [ROOT / "docs/tutorials" / f"{package}.md"] * (package != "graph")  # test_own_graph
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("photos", "photographs"):
        Path(folder).mkdir()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(f"{folder}/a.png")
    if package == "sr":
        save_model(load_model("potstill-x2"), "large.safetensors")
    if package == "graph":
        Path("mine").mkdir()
        rows = [f"n{k},{k % 2},{k % 3}.5,{k % 5}" for k in range(60)]
        Path("mine/features.csv").write_text("id,label,a,b\n" + "\n".join(rows) + "\n")
        edges = [f"n{k},n{(k + 2) % 60}" for k in range(60)]
        Path("mine/edges.csv").write_text("source,target\n" + "\n".join(edges) + "\n")
    commands = re.findall(rf"^potstill ({package} .+?) *(?:#.*)?$", text, re.MULTILINE)
    for command in commands:
        words = command.replace("DATA", "analytic").split()
        # A mesh needs a field that is trained: tests/nerf/test_export.py.
        words = ["points" if word == "mesh" else word for word in words]
        small = TINY.get(" ".join(words[:2]), "").split()
        given = [word for word in small if word.startswith("--") and word in words]
        for option in given:  # the small one wins, but for what the command is about
            where = small if option == "--kind" else words
            del where[where.index(option) : where.index(option) + 2]
        if "--config" in words:
            small = []
        assert main([*words, *small]) == 0, command
    assert len(commands) > {"graph": 1, "nerf": 9, "sr": 3}[package]
