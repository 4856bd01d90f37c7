"""Spaces, budgets and costs."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.core import BackendError, ConfigError
from potstill.search import Budget, Latency, Space, label, measure, resnet, static_costs, vit
from potstill.search.costs import require_steady

LINEAR = {"in_features": (4, 8), "out_features": (2, 3, 5)}


def test_a_space_is_the_product_of_its_choices_without_what_is_invalid() -> None:
    space = Space(nn.Linear, LINEAR, valid=lambda in_features, out_features: in_features > 4)
    assert len(space) == 6
    assert list(space) == [{"in_features": 8, "out_features": n} for n in (2, 3, 5)]


def test_samples_are_different_candidates_and_depend_on_the_seed_alone() -> None:
    space = Space(nn.Linear, {"in_features": range(1, 40), "out_features": range(1, 40)})
    first, again, other = space.sample(50, 0), space.sample(50, 0), space.sample(50, 1)
    assert first == again != other
    assert len({label(choice) for choice in first}) == 50
    assert space.sample(5000) == list(space)


def test_fresh_weights_are_those_of_a_seed() -> None:
    space, choice = Space(nn.Linear, LINEAR), {"in_features": 4, "out_features": 2}
    assert torch.equal(space.make(choice, 3).weight, space.make(choice, 3).weight)
    assert not torch.equal(space.make(choice, 3).weight, space.make(choice, 4).weight)


def test_a_file_names_a_builder_and_nothing_in_it_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text('builder = "resnet"\n[choices]\ndepth = [[1], [2]]\n[fixed]\nwidth = 4\n')
    space = Space.load(path)
    assert space.make(next(iter(space))).get_classifier().in_features == 4
    path.write_text('builder = "os:system"\n[choices]\ncommand = ["true", "false"]\n')
    with pytest.raises(ConfigError, match=r"builder in .*space.toml must be one of .*resnet.*timm"):
        Space.load(path)
    path.write_text('builder = "resnet"\nchoice = 3\n')
    with pytest.raises(ConfigError, match="got 'choice'; did you mean 'choices'"):
        Space.load(path)
    path.write_text('builder = "resnet"\n[choices]\nwidth = 4\n')
    with pytest.raises(ConfigError, match="width in .* must be a list, got 4"):
        Space.load(path)


@pytest.mark.parametrize(
    ("choices", "fixed", "message"),
    [
        ({"a": ()}, {}, "a must be a list of values"),
        ({"a": "xy"}, {}, "a must be a list of values, got 'xy'"),
        ({"a": (1, 2, 1)}, {}, "a must have different values"),
        ({"a": (1, 2)}, {"a": 1}, "a must be fixed or a choice, got both"),
        ({"a": (1,)}, {}, "at least 2 candidates, got 1"),
    ],
)
def test_choices_that_are_none_are_refused(choices, fixed, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Space(nn.Linear, choices, fixed)


def test_students_of_timm_and_small_residual_networks_are_built() -> None:
    small = resnet(5, depth=((1, 2), (2, 1)), width=(4,))
    x = torch.randn(2, 3, 8, 8)
    assert small.make(next(iter(small))).eval()(x).shape == (2, 5)
    transformers = vit(5, size=8, patch=4, depth=(1,), dim=(8, 12), heads=(2, 3), mlp=(1,))
    assert [choice["num_heads"] for choice in transformers] == [2, 2, 3]
    assert transformers.make(next(iter(transformers))).eval()(x).shape == (2, 5)
    with pytest.raises(ConfigError, match="timm has no architecture 'vit_tinny'"):
        vit(5, model="vit_tinny").make({"depth": 1})


def test_costs_are_counted() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    costs = static_costs(net, torch.zeros(1, 4))
    assert costs["parameters"] == 4 * 3 + 3 + 6
    assert costs["macs"] == 12
    assert math.isclose(costs["megabytes"], (21 * 4 + 6 * 4 + 8) / 1e6)


def test_a_budget_tells_what_is_exceeded_and_by_how_much() -> None:
    budget = Budget(macs=100, parameters=10)
    assert budget.excess({"macs": 150, "parameters": 10, "megabytes": 9}) == {"macs": 0.5}
    assert budget.excess({"macs": math.nan}).keys() == {"macs"}
    with pytest.raises(ConfigError, match="milliseconds must be positive, got 0"):
        Budget(milliseconds=0)


def test_timings_that_are_not_steady_are_refused_with_the_way_out() -> None:
    found = measure(nn.Linear(4, 4), torch.zeros(1, 4), attempts=1)
    assert found.low <= found.milliseconds <= found.high
    require_steady([Latency(1.0, 0.9, 1.2)])
    with pytest.raises(BackendError, match=r"1 of 2 .* 2\.00 times the 20th.* budget in macs"):
        require_steady([Latency(1.0, 0.9, 1.2), Latency(1.0, 0.8, 1.6)])
    with pytest.raises(BackendError, match=r"up to 1\.5 cores"):
        require_steady([Latency(1.0, 1.0, 1.0, others=1.5)])
