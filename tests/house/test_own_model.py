"""The commands in README and tutorial of acm, one after another, on a handful of tiny images."""

import json
import re
from pathlib import Path

from workspace import ROOT

from potstill.core.command.cli import main
from tests.acm import test_cli

data = test_cli.data

PAGES = [ROOT / "packages/acm/README.md", ROOT / "docs/tutorials/acm.md"]
TEXT = "".join(page.read_text(encoding="utf-8") for page in PAGES)
COMMANDS = list(dict.fromkeys(re.findall(r"^potstill (acm .+)$", TEXT, re.MULTILINE)))
COMMANDS += [f"acm {words}" for words in re.findall(r"\(`(distill .+)`\)", TEXT)]
SMALLER = {
    "--model vit_small_patch16_224 --pretrained": " ".join(test_cli.SMALL),
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
        words = command.split()
        if words[1] == "distill":
            pairs = zip(test_cli.SHORT[::2], test_cli.SHORT[1::2], strict=True)
            words += [word for pair in pairs if pair[0] not in words for word in pair]
        assert main(words) == 0, command
        said.setdefault(words[1], capsys.readouterr().out)
    trained = json.loads(Path("runs/d/model/config.json").read_text())
    assert trained["phases"][-1] == "finetune"
    assert trained["modes"] == {"blocks.0.mlp": 4, "blocks.1.mlp": 4}
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
