"""Small models of every supported family."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 64, "embed_dim": 48},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "embed_dim": 48},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, "embed_dim": 48, "num_heads": 3},
    "vit_base_patch16_clip_224": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 56, "embed_dim": 48},
    "vit_small_patch16_dinov3": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
    "vit_small_patch16_rope_mixed_224": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
}


def small_vit(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    torch.manual_seed(options.pop("seed", 0))
    return timm.create_model(name, **{"depth": 4, "num_classes": 5, **SMALL[name], **options})


@pytest.fixture
def make_vit():
    return small_vit


@pytest.fixture(params=list(SMALL))
def any_vit(request):
    return small_vit(request.param).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
