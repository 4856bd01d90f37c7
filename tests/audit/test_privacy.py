"""Canaries, exposure, membership, and private training."""

import math
from pathlib import Path
from statistics import NormalDist, fmean

import pytest
import torch
from torch import Tensor, nn

from potstill.audit import (
    Data,
    Learning,
    Network,
    Worlds,
    exposure,
    exposure_floor,
    fit_private,
    lira,
    membership,
    plant,
    roc,
)  # fmt: skip
from potstill.core.errors import CheckpointError, ConfigError, PotstillError


@pytest.mark.parametrize(("count", "bits"), [(1, 0.0), (2, 0.5), (145, 1.408788), (1000, 1.436386)])
def test_exposure_without_memory(count: int, bits: float) -> None:
    """Oracle 1."""
    assert exposure_floor(count) == pytest.approx(bits, abs=1e-6)
    every = torch.arange(float(count))
    drawn = [float(exposure(every[n : n + 1], every[every != n])) for n in range(count)]
    assert fmean(drawn) == pytest.approx(bits, abs=1e-6)
    assert drawn[-1] == pytest.approx(math.log2(count))  # the first in rank
    assert exposure_floor(10**6) == pytest.approx(math.log2(math.e), abs=1e-4)


def test_equal_scores_count_half() -> None:
    """Oracle 2."""
    a, b = torch.tensor([1.0, 2, 2, 3]), torch.tensor([0.0, 2, 2, 1])
    twice = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    assert roc(a, b).auc == pytest.approx(0.71875) == float(twice.mean())


@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_the_ratio_on_gaussians(spread: float) -> None:
    """Oracle 3: with equal spreads the exact AUC; with unequal ones the ratio beats the score."""
    rng = torch.Generator().manual_seed(0)
    worlds, items = 64, 4000
    member = torch.rand(worlds, items, generator=rng) < 0.5
    noise = torch.randn(worlds, items, generator=rng, dtype=torch.float64)
    phi = torch.where(member, 1 + spread * noise, noise)
    score, inside = lira(phi, member, 0)
    ratio = roc(score[inside], score[~inside])
    raw = roc(phi[0][member[0]], phi[0][~member[0]])
    normal = NormalDist()
    if spread == 1:
        assert ratio.auc == pytest.approx(normal.cdf(1 / math.sqrt(2)), abs=0.015)
        assert ratio.at_1 == pytest.approx(1 - normal.cdf(normal.inv_cdf(0.99) - 1), abs=0.03)
    else:
        assert ratio.auc > raw.auc + 0.003


def test_items_with_too_few_shadows_are_left_out() -> None:
    member = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 0], [0, 0]]).bool()
    score, inside = lira(torch.randn(5, 2), member, 0)
    assert len(score) == 1  # the second is inside of one shadow only
    assert inside.tolist() == [True]


def test_canaries_have_wrong_labels(digits: Data) -> None:
    x, y = digits.teacher
    found = plant(x, y, 40, test=digits.test[0])
    assert bool((found.y[found.rows] != y[found.rows]).all())
    assert len(found.rows) == 40
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[found.rows] = False
    assert torch.equal(found.y[rest], y[rest])
    with pytest.raises(ConfigError, match="pool must be 20 to the 700 items, got 10"):
        plant(x, y, 10)
    with pytest.raises(ConfigError, match="no canary may be in the pool twice"):
        plant(x[:1].expand(30, -1, -1, -1), y[:30], 30, classes=10)
    with pytest.raises(ConfigError, match="no canary may be in the test set"):
        plant(x, y, 40, test=x)


def worlds_of(learning: Learning, digits: Data, run: Path | None = None, broken: int = -1,
              same: bool = False, **options: int) -> Worlds:  # fmt: skip
    x, y = digits.teacher[0][:200], digits.teacher[1][:200]
    planted = plant(x, y, 40, classes=10)

    def train(members: Tensor, seed: int) -> dict[str, nn.Module]:
        if seed == broken:
            raise RuntimeError("the disk is full")
        if same:
            members, seed = torch.arange(200), 0
        inputs, labels = planted.x[members], planted.y[members]
        return {"teacher": learning.train_teacher(inputs, labels, seed)}

    return membership(
        train, (planted.x, planted.y), canaries=planted.rows, run=run,
        **{"worlds": 5, "insert": 8, **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def quick() -> Learning:
    return Learning(10, (64,), (16,), steps=40, batch=32, lr=0.01)


def test_worlds_resume_to_the_same_table(quick: Learning, digits: Data, tmp_path: Path) -> None:
    whole = worlds_of(quick, digits)
    with pytest.raises(PotstillError, match="world 2 failed: the disk is full; finished worlds"):
        worlds_of(quick, digits, tmp_path, broken=2)
    assert len(list(tmp_path.glob("world-*.json"))) == 2
    (tmp_path / "world-001.json").write_text('{"weights": "')  # and one is damaged
    again = worlds_of(quick, digits, tmp_path)
    assert again.table().markdown() == whole.table().markdown()
    assert torch.equal(again.phi["teacher"], whole.phi["teacher"])
    with pytest.raises(CheckpointError, match="another insert"):
        worlds_of(quick, digits, tmp_path, insert=6)
    assert whole.floor() == exposure_floor(33)
    for attacks in (whole.threshold("teacher"), whole.lira("teacher")):
        assert all(0 <= attack.auc <= 1 for attack in attacks), "finite with the fewest worlds"
    assert fmean(whole.exposure("teacher")) > fmean(whole.strangers("teacher"))
    text = whole.table().markdown()
    assert "without memory" in text
    assert "±" in text


def test_worlds_that_say_nothing_are_refused(quick: Learning, digits: Data) -> None:
    with pytest.raises(ConfigError, match="worlds must be at least 5, got 4"):
        worlds_of(quick, digits, worlds=4)
    with pytest.raises(ConfigError, match="share must leave members and others, got 1"):
        worlds_of(quick, digits, share=1)
    with pytest.raises(ConfigError, match="insert must be less than half of the 40"):
        worlds_of(quick, digits, insert=20)
    with pytest.raises(ConfigError, match="same teacher in worlds 0 and 1"):
        worlds_of(Learning(10, (8,), steps=1), digits, same=True)


def test_untrained_worlds_have_the_floor_for_exposure(digits: Data) -> None:
    """The null: no memory, so the exposure is the floor and membership a coin."""
    planted = plant(*digits.teacher, 60)

    def train(members: Tensor, seed: int) -> dict[str, nn.Module]:
        torch.manual_seed(seed)
        return {"teacher": Network((1, 8, 8), 10, (8,))}

    found = membership(train, (planted.x, planted.y), canaries=planted.rows, worlds=24, insert=15)
    values = torch.tensor(found.exposure("teacher"))
    error = 3 * float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - found.floor()) < error
    assert fmean(a.auc for a in found.threshold("teacher")) == pytest.approx(0.5, abs=0.03)


def test_a_private_teacher(digits: Data) -> None:
    """Oracle 9, as a recipe: it learns, its promise is finite, and its keys are its own."""
    pytest.importorskip("opacus")
    torch.manual_seed(0)
    model = Network((1, 8, 8), 10, (24,))
    names = list(model.state_dict())
    x, y = digits.teacher
    found = fit_private(model, x, y, noise=1.0, steps=40, lr=0.02)
    assert found.history[-1]["task"] < found.history[0]["task"]
    assert 0 < found.epsilon < 20
    assert list(model.state_dict()) == names
    assert all(p.grad is None or not hasattr(p, "grad_sample") for p in model.parameters())
    more = fit_private(Network((1, 8, 8), 10, (4,)), x, y, noise=4.0, steps=5)
    less = fit_private(Network((1, 8, 8), 10, (4,)), x, y, noise=1.0, steps=5)
    assert more.epsilon < less.epsilon
    with pytest.raises(ConfigError, match="noise and clip must be positive"):
        fit_private(model, x, y, noise=0.0)
