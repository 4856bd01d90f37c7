"""Costs against a count by hand, operation by operation."""

import pytest
import torch
from torch import nn

from potstill.acm import acmize, acms, costs, forced, record_gates, set_mode, share, spent
from potstill.acm.layers.budget import check_budget, reachable
from potstill.core.errors import ConfigError
from potstill.core.measure.counts import count_macs


def by_hand(readings, modules):
    """Multiply-adds of every learner that every token ran, one at a time."""
    totals = None
    for name, reading in readings.items():
        acm = modules[name]
        batch = reading.choices.reshape(len(reading.choices), -1)
        totals = totals or [0] * len(batch)
        for image, tokens in enumerate(batch.tolist()):
            for k in tokens:
                for n in range(k):
                    width = acm.bounds[n + 1] - acm.bounds[n]
                    totals[image] += width * acm.inputs + width * acm.outputs
    return totals


@pytest.mark.parametrize("targets", [("mlp",), ("mlp", "qkvo")])
@pytest.mark.parametrize("learners", [4, 5])
@pytest.mark.filterwarnings("ignore:acmize.*remainder")
def test_dynamic_costs_equal_brute_force(vit, images, targets, learners):
    adaptive = acmize(vit, targets, learners).eval()
    modules = acms(adaptive)
    for acm in modules.values():
        nn.init.normal_(acm.gate.choose.weight, std=3.0)
    with torch.no_grad(), record_gates(adaptive) as readings:
        adaptive(images)
    expected = by_hand(readings, modules)
    assert len(set(expected)) > 1
    assert spent(readings).tolist() == expected
    full = sum(17 * acm.costs[-1] for acm in modules.values())
    torch.testing.assert_close(share(readings), torch.tensor(expected) / full)


def test_static_costs_equal_the_dense_count(vit, adaptive, images):
    count = costs(adaptive, images[:1])
    assert count.dense == count_macs(vit, images[:1])
    assert count.learners == 3 * 17 * 2 * 24 * 96
    assert count.gates == 3 * 17 * 8 * (24 + 5)
    assert count.at(0.5) == count.fixed + count.gates + count.learners / 2
    assert acms(adaptive)["blocks.0.mlp"].mode == "gated"  # put back


def test_static_costs_at_k_equal_torchs_counter(adaptive, images):
    count = costs(adaptive, images[:1])
    for k in (1, 3):
        counted = count_macs(set_mode(adaptive, k), images[:1])  # the gates do not run
        assert counted == count.at(k / 4) - count.gates


def test_gated_costs_equal_torchs_counter(lively, images):
    """What the sorted products really did, as torch counts it."""
    count = costs(lively, images[:1])
    with torch.no_grad(), record_gates(lively) as readings:
        lively(images[:1])
    expected = count.fixed + count.gates + float(spent(readings)[0])
    assert count_macs(lively, images[:1]) == expected


def test_shares_have_a_gradient_in_training(lively, images):
    lively.train()
    with record_gates(lively) as readings:
        lively(images)
    share(readings).mean().backward()
    assert float(acms(lively)["blocks.0.mlp"].gate.rise.weight.grad.abs().max()) > 0


def test_what_can_be_reached(vit, images):
    for targets, low in ((("mlp",), 0.0), (("qkvo",), 0.25)):
        adaptive = acmize(vit, targets).eval()
        with torch.no_grad(), record_gates(adaptive) as readings:
            adaptive(images)
        assert reachable(adaptive, readings) == (pytest.approx(low), 1.0)


def test_budgets_out_of_range():
    for budget in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"f: budget must be in \(0, 1\], got"):
            check_budget("f", budget)
    with pytest.raises(ConfigError, match="must be from 0.25 to 1, what this model can reach"):
        check_budget("f", 0.2, low=0.25)
    with pytest.raises(ConfigError, match="must have adaptive modules, got a Linear"):
        costs(nn.Linear(2, 2), torch.zeros(1, 2))


def test_all_zero_costs_nothing(adaptive, images):
    zeros = {name: torch.zeros(6, 17, dtype=torch.long) for name in acms(adaptive)}
    with torch.no_grad(), forced(adaptive, zeros), record_gates(adaptive) as readings:
        out = adaptive(images)
    assert not spent(readings).any()
    assert bool(out.isfinite().all())
