import pytest
import torch

from potstill.acm import acms, costs
from potstill.acm.analysis.sweep import random_choices, sweep_layer, sweep_model
from potstill.core.errors import BackendError, ConfigError


@pytest.mark.parametrize(("budget", "least"), [(0.1, 0), (0.5, 0), (0.9, 0), (1.0, 0), (0.5, 1)])
def test_random_choices_have_the_mean(budget, least):
    k = random_choices(20_000, 4, budget, least=least)
    assert abs(float(k.float().mean()) / 4 - budget) < 1e-3
    assert int(k.min()) >= least
    assert int(k.max()) <= 4


def test_rows_have_macs_and_milliseconds(adaptive, vit, images):
    acm = acms(adaptive)["blocks.1.mlp"]
    dense = vit.blocks[1].mlp
    rows = sweep_layer(acm, dense, tokens=40, budgets=(0.5, 1.0), rounds=1)
    assert rows[1]["budget"] == 1
    assert rows[1]["MMACs"] == pytest.approx(40 * (acm.costs[-1] + acm.gate_cost) / 1e6)
    assert rows[1]["linear"] == pytest.approx(1 + acm.gate_cost / acm.costs[-1])
    for row in (*rows, *sweep_model(adaptive, vit, images, (0.5,), rounds=1)):
        assert row["ms"] > 0
        assert row["dense ms"] > 0
        assert row["ratio"] == pytest.approx(row["ms"] / row["dense ms"])
    count = costs(adaptive, images[:1])
    (whole,) = sweep_model(adaptive, vit, images, (1.0,), rounds=1)
    assert whole["MMACs"] == pytest.approx(6 * count.at(1.0) / 1e6)
    assert whole["linear"] == pytest.approx(count.at(1.0) / count.dense)
    assert all(
        acm._forced is None and not acm._forward_pre_hooks for acm in acms(adaptive).values()
    )


def test_bad_input(adaptive):
    acm = adaptive.blocks[0].mlp
    with pytest.raises(BackendError, match="'triton' cannot run here"):
        sweep_layer(acm, torch.nn.Identity(), 4, backend="triton")
    with pytest.raises(ConfigError, match=r"random_choices: budget must be in \(0, 1\], got 2"):
        sweep_layer(acm, torch.nn.Identity(), 4, budgets=(2,))
