"""Builders that packages offer to `potstill search` give models, and their sizes are choices."""

import importlib

import pytest
import torch
from torch import nn
from workspace import PACKAGES, project

from potstill.search import Elastic, Space

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


NESTED = {
    "imdn": ({"channels": (8, 12), "blocks": (1, 2)}, {"scale": 2}),
    "gcn": ({"hidden_channels": (4, 6)}, {"in_channels": 5, "num_layers": 3, "out_channels": 3}),
}


@pytest.mark.parametrize("name", NESTED)
def test_builders_of_domains_share_weights_exactly(name: str) -> None:
    module, _, attribute = OFFERED[name][1].partition(":")
    choices, fixed = NESTED[name]
    space = Space(getattr(importlib.import_module(module), attribute), choices, fixed)
    elastic = Elastic(space).eval()
    inputs = (torch.rand(1, 3, 6, 6),)
    if name == "gcn":
        inputs = (torch.rand(4, 5), torch.tensor([[0, 1, 2], [1, 2, 3]]))
    for choice in space:
        assert torch.equal(elastic(inputs, choice), elastic.extract(choice)(*inputs))
    elastic(inputs, elastic.least).sum().backward()
    slices = {n: view.shape for n, view in elastic.views(elastic.least).items()}
    for name, parameter in elastic.full.named_parameters():
        if parameter.grad is not None:  # outside of the slice nothing moves
            parameter.grad[tuple(slice(n) for n in slices[name])] = 0
            assert not parameter.grad.any(), name
