"""Small models of every supported family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from potstill.core import Training
from potstill.mae import Data, Decoder, Encoder, Pretrain, Student, Teacher, pretrain

SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 64, "embed_dim": 48},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "embed_dim": 48},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, "embed_dim": 48, "num_heads": 3},
    "vit_base_patch16_clip_224": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 56, "embed_dim": 48},
    "vit_small_patch16_dinov3": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
    "beit_base_patch16_224": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
    "vit_small_patch16_rope_mixed_224": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
}


def small_vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    torch.manual_seed(options.pop("seed", 0))
    vit = timm.create_model(name, **{"depth": 4, "num_classes": 5, **SMALL[name], **options})
    for key, parameter in vit.named_parameters():
        if key.endswith("relative_position_bias_table"):  # zeros: the same at any position
            torch.nn.init.normal_(parameter)
    return vit


@pytest.fixture
def make_vit():
    return small_vit


@pytest.fixture(params=list(SMALL))
def any_vit(request):
    return small_vit(request.param).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


TINY = Encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, width=48, depth=2, heads=3)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen and a half reddish and bluish images, below train/ and test/."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 6)):
        for name, tint in (("red", (255, 60, 60)), ("blue", (60, 60, 255))):
            (folder / part / name).mkdir(parents=True)
            for index in range(count // 2):
                noise = rng.integers(0, 60, (32, 32, 3)) + np.array(tint) - 60
                pixels = np.clip(noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a teacher."""
    folder = tmp_path_factory.mktemp("teacher") / "t"
    torch.manual_seed(3)
    bigger = Encoder(TINY.name, image_size=32, patch_size=8, width=72, depth=2, heads=3)
    Student(bigger, Decoder(depth=0), fixed_positions=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def configured(pictures: Path, teacher: Path) -> Any:
    """A small pre-training into a folder."""

    def make(out: Path, **more: Any) -> Pretrain:
        settings: dict[str, Any] = {
            "student": TINY,
            "decoder": Decoder(depth=1, width=32),
            "teacher": Teacher(str(teacher)),
            "data": Data(str(pictures / "train"), resident=True),
            "training": Training(
                epochs=2, batch=8, optimizer="adamw", weight_decay=0.05, device="cpu"
            ),
        }
        return Pretrain(out, **{**settings, **more})

    return make


@pytest.fixture(scope="session")
def run(configured: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished pre-training."""
    out = tmp_path_factory.mktemp("runs") / "pre"
    pretrain(configured(out), progress=False)
    return out


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
