"""A small teacher of the analytic scene, trained once, and the poses that it is seen from."""

import pytest
import torch

from potstill.nerf import load_scene, make_field, train_field
from potstill.nerf.distill.priors import prior_of
from potstill.nerf.fields.factored import CPConfig, VMConfig
from potstill.nerf.fields.grid import GridConfig
from potstill.nerf.fields.hash import HashConfig
from potstill.nerf.fields.mlp import MLPConfig

SIZES = {
    "hash": HashConfig(levels=6, log2_rows=12, base=8, finest=64, hidden=32),
    "mlp": MLPConfig(depth=2, width=32, skip=1, bands=5, hidden=32),
    "vm": VMConfig(resolution=24, density=4, color=8, hidden=32),
    "cp": CPConfig(resolution=32, density=24, color=24, hidden=32),
    "grid": GridConfig(resolution=20, degree=2),
}


@pytest.fixture(scope="session")
def scene():
    return load_scene("analytic", downsample=3)


@pytest.fixture(scope="session")
def teacher(scene):
    torch.manual_seed(0)
    field = make_field("hash", scene.space, SIZES["hash"], occupancy=24)
    return train_field(field, scene, steps=150, samples=2000, progress=False)[0]


@pytest.fixture(scope="session")
def prior(scene):
    return prior_of(scene.train.cameras, scene.space)


@pytest.fixture(scope="session")
def sizes():
    return SIZES
