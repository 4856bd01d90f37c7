"""A tiny task: colours to classes."""

import pytest
import torch
from torch import nn

from potstill.core.images import Images
from potstill.search import SmallResNet


@pytest.fixture
def images_of():
    """``images_of(24)``: small images of three colours, [3 8 8] bytes, with noise."""

    def make(count: int, seed: int = 0) -> Images:
        rng = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 3
        pixels = torch.randint(0, 128, (count, 3, 8, 8), generator=rng)
        pixels[torch.arange(count), labels] += 120
        names = tuple(f"{i}.png" for i in range(count))
        return Images(pixels.to(torch.uint8), labels, names, ("a", "b", "c"))

    return make


@pytest.fixture
def teacher() -> nn.Module:
    """An untrained teacher of three classes."""
    torch.manual_seed(7)
    return SmallResNet((1, 1), 8, num_classes=3).eval()
