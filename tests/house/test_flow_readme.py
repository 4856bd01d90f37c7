"""The commands of the README run, made small."""

import re
from pathlib import Path

import pytest
from PIL import Image

from potstill.core.command import main

pytest.importorskip("diffusers")

README = Path(__file__).parents[2] / "packages/flow/README.md"
COMMANDS = re.findall(r"^potstill flow .*", README.read_text(), re.MULTILINE)
LITTLE = "--training.steps 2 --training.batch 4 --training.device cpu"
SMALL = {
    "train-teacher": f"{LITTLE} --widths 8 8",
    "distill": LITTLE,
    "evaluate": "--samples 8 --steps 1 2 --training.device cpu",
}


def test_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("potstill.core.engine.fit.plot_curves", lambda *_: None)
    for number in range(12):
        path = Path("photos/train", "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (20 * number, 255 * (number % 2), 0)).save(path)
    assert [line.split()[2] for line in COMMANDS] == [
        "distill", "sample", "evaluate", "train-teacher", "distill",
    ]  # fmt: skip
    for line in COMMANDS:
        verb = line.split()[2]
        more = SMALL.get(verb, "").split() + (["--no-check"] if " dmd2 " in line else [])
        assert main([*line.split()[1:], *more]) == 0, line
    assert Path("samples.png").stat().st_size > 500
