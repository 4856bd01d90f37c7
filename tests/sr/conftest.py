"""What the tests of sr share: the official weights, photographs."""

import numpy as np
import pytest
import torch

from potstill.core.store.data import root


@pytest.fixture(scope="session")
def official():
    """Path of an official weight file, as safetensors; for tests that require sr/safetensors."""
    return lambda name: root() / "sr" / "safetensors" / f"{name}.safetensors"


@pytest.fixture
def photograph() -> np.ndarray:
    """A smooth image with edges, [48 60 3] bytes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :60]
    waves = 100 + 60 * np.sin(x / 4)[..., None] + 40 * np.cos(y[..., None] / np.array([3, 5, 7]))
    waves[20:30, 15:40] = (240, 30, 60)
    return (waves + rng.normal(0, 3, waves.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def tiny():
    """A seeded network of 8 channels and 2 blocks whose gates depend strongly on the image."""
    from potstill.sr import IMDN

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = IMDN(2, channels=8, blocks=2).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.gate.down.weight.mul_(20)
            block.gate.up.weight.mul_(5)
    return model
