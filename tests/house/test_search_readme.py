"""The commands of README and tutorial run, made small."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from potstill.core.command import main
from potstill.search import save_student, timm_model

ROOT = Path(__file__).parents[2]
COMMANDS = [
    line
    for path in (ROOT / "packages/search/README.md", ROOT / "docs/tutorials/search.md")
    for line in re.findall(r"^potstill search .*", path.read_text(), re.MULTILINE)
]
LITTLE = "--steps 2 --batch 4 --size 32 --device cpu"
SMALL = {  # a clock that other tests disturb is no budget
    "suggest": f"--parameters 60000 --shortlist 2 {LITTLE}",
    "elastic": LITTLE,
    "costs": "--candidates 2 --device cpu",
}


def test_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("potstill.core.engine.fit.plot_curves", lambda *_: None)
    for number in range(12):
        path = Path("photos/train", "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 255 * (number % 2), 0)).save(path)
    torch.manual_seed(0)
    save_student(timm_model("test_resnet", num_classes=2), "teacher")
    verbs = {line.split()[2] for line in COMMANDS}
    assert verbs == {"space", "costs", "suggest", "elastic", "check"}
    for number, line in enumerate(COMMANDS):
        if number == 1:  # the space is written; a smaller one is enough
            text = Path("space.toml").read_text().replace("[2, 3, 4, 6]", "[1, 2]")
            text = text.replace("[48, 72, 96, 144]", "[12]").replace("[1, 2, 4]", "[1]")
            Path("space.toml").write_text(text.replace("patch_size = 4", "patch_size = 16"))
        line = re.sub(r"--milliseconds \S+", "", line)
        line = line.replace("timm:resnet18", "timm:test_resnet --fresh").replace(
            "photos/ ", "photos/train "
        )
        words = [*line.split()[1:], *SMALL.get(line.split()[2], "").split()]
        if words[1] == "suggest" and "--out" not in words:
            words += ["--out", "runs/search" if "local-dir" in line else f"runs/{number}"]
        assert main(words) == 0, line
    weights = load_file("runs/search/student/model.safetensors")  # acm and mae take it as it is
    words = ["--model", "local-dir:runs/search/student", "--pretrained"]
    assert main(["acm", "convert", "runs/adaptive", *words]) == 0
    words = ["--checkpoint", "runs/search/student/model.safetensors"]
    assert main(["acm", "convert", "runs/by-file", *words]) == 0
    for out in ("runs/timm", "runs/student.safetensors"):
        assert main(["mae", "export", "runs/search", out]) == 0
    for path in ("adaptive/dense", "by-file/dense", "timm/model", "student"):
        found = load_file(f"runs/{path}.safetensors")
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], value) for name, value in weights.items()), path
