"""The commands of a domain's documents run, in a folder of a user who has what they name."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from potstill.core.command.cli import main
from potstill.mae import Decoder, Encoder, Student, create_encoder, recipe, write_weights

ROOT = Path(__file__).parents[2]
COMMANDS = sorted({
    " ".join(line.strip("#$ ").split())
    for path in [*ROOT.glob("packages/mae/**/*.md"), *ROOT.glob("packages/mae/**/recipes/*.yaml"),
                 *ROOT.glob("docs/**/mae.md"), *ROOT.glob("docs/guides/*.md"),
                 ROOT / "apps/mae/README.md"]
    for line in path.read_text().replace("\\\n", " ").splitlines()
    if re.search(r"(potstill|potstill\.core) mae \w+", line) and line.strip("#$ ")[0] in "pt"
    and "`" not in line
})  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line as it stands, in the order of a user; what follows makes it small."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("photos", "imagenet/train/a", "imagenet/train/b", "imagenet/val/a"):
        Path(folder).mkdir(parents=True)
        for k in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder, f"{k}.png"))
    tiny = {"name": "vit_tiny_patch16_224", "image-size": 32, "patch-size": 8, "width": 48,
            "depth": 2, "heads": 3}  # fmt: skip

    dino = {"image-size": 70, "patch-size": 14, "width": 24, "depth": 2, "heads": 3}

    def sizes(whose: str, numbers: dict[str, Any] = tiny) -> str:
        return " ".join(f"--{whose}.{name} {value}" for name, value in numbers.items())

    bigger = Encoder(tiny["name"], image_size=32, patch_size=8, width=72, depth=2, heads=3)
    Student(bigger, Decoder(depth=0)).save_pretrained("teacher")
    small_dino = Encoder(
        "vit_small_patch14_dinov2", image_size=70, patch_size=14, width=24, depth=2, heads=3
    )
    write_weights(create_encoder(small_dino), "dinov2_vits14_pretrain.pth", "timm")
    small = "--batch 4 --device cpu --workers 0 --precision fp32"
    pretrain = f"{small} --steps 1 {sizes('student')} --decoder.width 32"
    more = {
        "pretrain": f"{pretrain} --mask.ratio 0.75 --teacher.source teacher",
        "finetune": f"{small} --steps 1",
        "probe": "--device cpu --neighbors 3 --epochs 1 --batch 4",
        "inspect": "--count 2 --tokens 64",
        "time": f"{sizes('student')} {sizes('teacher')} --ratios 0.75 --repeats 1 --batch 2 "
        "--device cpu",
    }
    order = list(more)
    for line in sorted(COMMANDS, key=lambda c: next((i for i, v in enumerate(order) if v in c), 9)):
        line = line.replace("--config ...", "--config $(potstill mae recipe light_vit_small)")
        line = re.sub(r"\$\(potstill mae recipe (\w+)\)", lambda m: str(recipe(m[1])), line)
        words = line.replace("PATH", "photos/").partition("mae ")[2].split()
        rest = more.get(words[0], "").split()
        if "--teacher.source" in words:
            rest = f"{pretrain} {sizes('teacher.encoder', dino)}".split()
        for option in [word for word in words if word.startswith("--") and word in rest]:
            del words[words.index(option) : words.index(option) + 2]  # the small one wins
        assert main(["mae", *words, *rest]) == 0, line
    assert len(COMMANDS) > 6
    assert Path("student.onnx").stat().st_size > 10_000
