"""Choices from times that are made up here: on a busy machine measured ones prove nothing."""

import itertools

import pytest
import torch

from potstill.acm import acms, fit_time, from_pretrained, save_pretrained, set_mode
from potstill.acm.analysis import fitting
from potstill.acm.analysis.fitting import Option, cheapest
from potstill.core import Timing
from potstill.core.errors import ConfigError

MODULES = 3


@pytest.fixture
def clock(monkeypatch):
    """Seconds of a module: 1 for each learner; a gate costs `gate`, a gated token `sort` more."""
    prices = {"gate": 0.2, "sort": 1.0, "rest": 5.0}

    def module(acm):
        if isinstance(acm.mode, int):
            return float(acm.mode)
        return 2.0 + prices["gate"] + (prices["sort"] if acm.mode == "gated" else 0.0)

    def in_turns(calls, rounds, seconds, within):
        found = {}
        for name, call in calls.items():
            with within(name):
                subject = call.func
                whole = prices["rest"] if acms(subject).keys() != {""} else 0.0
                spent = whole + sum(map(module, acms(subject).values()))
            found[name] = Timing((1e-3 * spent,) * rounds, 1)
        return found

    monkeypatch.setattr(fitting, "in_turns", in_turns)
    return prices


def fitted(model, milliseconds, batch=2):
    torch.manual_seed(3)
    return fit_time(model, torch.randn(4, 4, 3, 16, 16), milliseconds, batch=batch)


def test_the_cheapest_combination_is_that_of_all_combinations():
    torch.manual_seed(0)
    rows = [
        [Option(k, 0.0, *map(float, torch.rand(2))) for k in range(4)] for _ in range(4)
    ]  # fmt: skip
    for seconds in (0.3, 1.0, 1.7, 2.5, 4.0):
        able = [
            sum(o.damage for o in chosen)
            for chosen in itertools.product(*rows)
            if sum(o.seconds for o in chosen) <= seconds * (1 - 4 / 4096)
        ]
        found = cheapest(rows, seconds)
        assert (found is None) == (not able)
        if found is not None:
            assert sum(o.seconds for o in found) <= seconds
            assert sum(o.damage for o in found) <= min(able)


def test_with_time_enough_it_is_the_dense_model(lively, clock):
    found = fitted(lively, 100.0)
    assert [o.mode for o in found.modules.values()] == [4] * MODULES
    assert found.ratio.median == 1
    assert found.damage == 0


def test_gates_that_do_not_pay_are_not_used(lively, clock):
    clock["gate"] = 9.0  # as at batch 1 on a small model, where a gate costs more than a module
    for milliseconds in (8.0, 11.0, 14.0, 16.0):
        found = fitted(lively, milliseconds)
        assert all(isinstance(o.mode, int) for o in found.modules.values())
        assert found.milliseconds <= milliseconds
        assert found.ratio.median < 1


@pytest.mark.parametrize("milliseconds", [8.0, 11.0, 14.0, 16.0])
def test_the_result_fits_and_is_no_worse_than_the_best_one_without_gates(
    lively, clock, milliseconds
):
    clock["gate"] = 9.0
    narrow = fitted(lively, milliseconds)
    set_mode(lively, "gated")
    clock["gate"], clock["sort"] = 0.1, 0.1
    found = fitted(lively, milliseconds)
    assert found.milliseconds <= milliseconds
    assert found.damage <= narrow.damage
    assert {n: acm.mode for n, acm in acms(lively).items()} == {
        name: option.mode for name, option in found.modules.items()
    }


def test_gates_that_pay_are_used(lively, clock):
    """Learners that few images need, and a gate that knows which: a gate of images is exact."""
    with torch.no_grad():
        for acm in acms(lively).values():
            acm.down[acm.bounds[1] :] *= 3.0
            acm.gate.rise.weight.normal_(std=3.0)
    clock["gate"], clock["sort"] = -1.5, 0.1  # for next to nothing
    found = fitted(lively, 8.0)
    assert any(o.mode in ("gated", "image") for o in found.modules.values())


def test_a_plan_with_gates_that_is_slower_as_a_whole_is_refused(lively, clock, monkeypatch):
    clock["gate"], clock["sort"] = -1.5, 0.1
    monkeypatch.setattr(fitting._Bench, "_against", lambda *_: "gates take 1.1 of the time")
    found = fitted(lively, 8.0)
    assert found.refused == "gates take 1.1 of the time"
    assert all(isinstance(o.mode, int) for o in found.modules.values())


def test_the_choice_is_kept_with_the_model(lively, clock, tmp_path, images):
    found = fitted(lively, 11.0)
    save_pretrained(lively, tmp_path)
    again = from_pretrained(tmp_path)
    assert {n: a.mode for n, a in acms(again).items()} == {
        name: option.mode for name, option in found.modules.items()
    }
    with torch.no_grad():
        assert torch.equal(again(images), lively(images))


def test_measured_on_this_machine(lively):
    found = fit_time(lively, [torch.randn(4, 3, 16, 16)], 1e4, batch=1, rounds=1, seconds=1e-4)
    assert found.milliseconds > 0
    assert found.spread[0] <= found.milliseconds <= found.spread[1]


def test_bad_input(lively, vit, clock):
    with pytest.raises(ConfigError, match=r"must be at least about 5, what the fastest choice .*2"):
        fitted(lively, 4.0)
    assert all(acm.mode == "gated" for acm in acms(lively).values())
    with pytest.raises(ConfigError, match="milliseconds and batch must be positive, got 0"):
        fitted(lively, 0.0)
    with pytest.raises(ConfigError, match="images must fill a batch of 99, got 16"):
        fitted(lively, 9.0, batch=99)
    with pytest.raises(ConfigError, match="must have adaptive modules"):
        fitted(vit, 9.0)
