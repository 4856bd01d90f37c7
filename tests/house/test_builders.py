"""Builders that packages offer to `potstill search` give models, and their sizes are choices."""

import importlib

import pytest
from torch import nn
from workspace import PACKAGES, project

OFFERED = {
    name: (package, target)
    for package in PACKAGES
    for name, target in project(package)
    .get("entry-points", {})
    .get("potstill.builders", {})
    .items()
}
SIZES = {
    "gcn": {"in_channels": 5, "hidden_channels": 4, "num_layers": 2, "out_channels": 3},
    "imdn": {"scale": 2, "channels": 8, "blocks": 1},
    "resnet": {"depth": [1, 1], "width": 4},
    "timm": {"model": "vit_tiny_patch16_224", "depth": 1, "embed_dim": 12, "num_heads": 2},
}
SIZES |= {"mlp": SIZES["gcn"], "sage": SIZES["gcn"]}


@pytest.mark.parametrize("name", OFFERED)
def test_builders_build(name: str) -> None:
    module, _, attribute = OFFERED[name][1].partition(":")
    model = getattr(importlib.import_module(module), attribute)(**SIZES[name])
    assert isinstance(model, nn.Module)
