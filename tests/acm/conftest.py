"""A small ViT and its adaptive form."""

import pytest
import timm
import torch

from potstill.acm import acmize, acms

OPTIONS = {
    "img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3,
    "num_classes": 5, "global_pool": "avg",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def vit():
    model = timm.create_model("vit_tiny_patch16_224", **OPTIONS).eval()
    model.acm_origin = ("vit_tiny_patch16_224", OPTIONS)
    with torch.no_grad():  # timm starts heads and biases at zero, where little can be seen
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def adaptive(vit):
    return acmize(vit).eval()


@pytest.fixture
def lively(adaptive):
    """Gates that choose differently for different tokens."""
    with torch.no_grad():
        for acm in acms(adaptive).values():
            acm.gate.choose.weight.normal_(std=2.0)
            acm.gate.choose.bias.normal_(std=0.1)
    return adaptive


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16)
