"""Triggers, poisoned sets, success with its controls, and the bench."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import potstill.core.criteria as criteria
from potstill.audit import (
    ARMS,
    ArmDistiller,
    Blend,
    Data,
    Learning,
    Network,
    Patch,
    backdoor,
    bias,
    inheritance,
    poison,
    reach,
    relabel,
    stamp,
    success,
    triggered,
)  # fmt: skip
from potstill.core.errors import CheckpointError, ConfigError, ShapeError

# What is in potstill.core.criteria and no criterion of an arm.
NO_ARM = {
    "AttentionProjector", "LelpHead", "Projected", "RatioNet", "Resize", "RowOptions", "Subclasses",
    "Taid", "acceptance_rate", "block_efficiency", "cka_similarity", "conv1x1", "entropy_weight",
    "lelp_subclasses", "lelp_targets", "mlp", "null_space_projector", "row_std", "swing",
    "tgeo_reduced_state", "tgeo_state",
}  # fmt: skip


def test_every_criterion_of_the_core_has_an_arm() -> None:
    assert set(criteria.__all__) - NO_ARM <= set(ARMS)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains(name: str) -> None:
    torch.manual_seed(0)
    student, teacher = (Network((1, 8, 8), 5, widths, "cnn") for widths in ((4, 6), (5, 8)))
    x, y = torch.rand(8, 1, 8, 8), torch.randint(5, (8,))
    distiller = ArmDistiller(student, teacher, name, x)
    for step in range(2):  # Taid stores its first loss, and moves with the second
        losses = distiller((x, y), step)
    assert bool(losses.total.isfinite())
    losses.total.backward()
    gradient = next(student.parameters()).grad
    assert gradient is not None
    assert bool(gradient.any())
    assert all(p.grad is None for p in teacher.parameters())


def test_an_arm_on_maps_says_that_there_are_none() -> None:
    networks = [Network((1, 4, 4), 3, (4, 4)) for _ in range(2)]
    with pytest.raises(ConfigError, match="at compares maps"):
        ArmDistiller(*networks, "at", torch.rand(2, 1, 4, 4))
    with pytest.raises(ConfigError, match="no arm 'kdd'; did you mean 'kd'"):
        ArmDistiller(*networks, "kdd", torch.rand(2, 1, 4, 4))


def test_poison_marks_relabels_and_covers(digits: Data, patch: Patch) -> None:
    x, y = digits.teacher
    found = poison(x, y, patch, 0, 0.05, sources=(1, 2, 3), cover=0.04)
    assert len(found.rows) == 35
    assert len(found.cover) == 28
    assert set(y[found.rows].tolist()) <= {1, 2, 3}
    assert not set(y[found.cover].tolist()) & {0, 1, 2, 3}
    assert bool((found.y[found.rows] == 0).all())
    torch.testing.assert_close(found.x[found.rows], patch(x[found.rows]))
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[found.rows] = rest[found.cover] = False
    assert torch.equal(found.x[rest], x[rest])
    assert torch.equal(found.y[found.cover], y[found.cover])


def test_a_rate_of_nothing_gives_the_data_bit_for_bit(digits: Data, patch: Patch) -> None:
    found = poison(*digits.teacher, patch, 0, 0.0)
    assert torch.equal(found.x, digits.teacher[0])
    assert torch.equal(found.y, digits.teacher[1])
    assert len(found.rows) == len(found.cover) == 0
    assert torch.equal(stamp(digits.teacher[0], patch, 0.0), digits.teacher[0])


def test_what_cannot_be_poisoned_is_refused(digits: Data, patch: Patch) -> None:
    x, y = digits.teacher
    with pytest.raises(ConfigError, match="target must be a class from 0 to 9, got 10"):
        poison(x, y, patch, 10, 0.1)
    with pytest.raises(ConfigError, match=r"rate must be in \[0, 0.5\], got 0.7"):
        poison(x, y, patch, 0, 0.7)
    few = int((y == 1).sum())
    with pytest.raises(ConfigError, match=f"rate 0.5 of 700 items needs 350 candidates, got {few}"):
        poison(x, y, patch, 0, 0.5, sources=[1])
    with pytest.raises(ConfigError, match="sources must not hold the target 0"):
        poison(x, y, patch, 0, 0.1, sources=[0, 1])


def wrong_shape(x: Tensor) -> Tensor:
    return x[:, :, 1:]


def wrong_range(x: Tensor) -> Tensor:
    return x + 0.3


@pytest.mark.parametrize(
    ("trigger", "error", "message"),
    [
        (wrong_shape, ShapeError, "result must be"),
        (lambda x: x.double(), ShapeError, "float64"),
        (wrong_range, ConfigError, r"trigger: values must be in \[0, 1\], got \[0.3, 1.3\]"),
        (lambda x: x.clone(), ConfigError, "must change the input"),
    ],
)
def test_what_is_no_trigger_is_refused(
    trigger: Any, error: type[Exception], message: str, digits: Data
) -> None:
    with pytest.raises(error, match=message):
        triggered(trigger, digits.test[0])
    with pytest.raises(error, match=message):
        success(nn.Flatten(), *digits.test, trigger, 0)


def test_normalised_inputs_say_how(digits: Data, patch: Patch) -> None:
    with pytest.raises(ConfigError, match="pass bounds= where inputs are not pixels"):
        triggered(patch, digits.test[0] - 0.5)
    assert triggered(patch, digits.test[0] - 0.5, bounds=None).shape == digits.test[0].shape


class Answers(nn.Module):
    """Class 0 where the corner is lit, else the class in the second pixel."""

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.one_hot((10 * x[:, 0, 0, 1]).round().long(), 10).float()
        return torch.where(x[:, 0, :1, 0] > 0.5, nn.functional.one_hot(torch.tensor(0), 10), z)


def test_success_stands_beside_accuracy_and_base_rate() -> None:
    x = torch.zeros(10, 1, 2, 2)
    x[:, 0, 0, 1] = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 0]) / 10
    y = torch.arange(10)
    found = success(Answers(), x, y, Patch((0, 1), (0, 1)), 0)
    assert found == pytest.approx((0.9, 1.0, 1 / 9))
    unseen = success(Answers(), x, y, Patch((1, 2), (0, 1)), 0)
    assert unseen.rate == unseen.base == pytest.approx(1 / 9)  # images of the target do not count
    with pytest.raises(ConfigError, match="items of other classes than 0"):
        success(Answers(), x[:1], y[:1], Patch((0, 1), (0, 1)), 0)


def test_success_of_a_regression_has_its_own_meaning() -> None:
    """An upscaler: success is an output that is bright in one place."""
    x = torch.rand(6, 1, 4, 4) / 2
    trigger = Patch((0, 1), (0, 1))
    found = success(nn.Upsample(scale_factor=2), x, x, trigger, lambda z: z[:, 0, 0, 0] > 0.9)
    assert math.isnan(found.accuracy)
    assert (found.rate, found.base) == (1.0, 0.0)


def test_inheritance_is_above_the_clean_models() -> None:
    assert inheritance(0.6, 0.1, 0.9, 0.1) == pytest.approx(0.625)
    assert math.isnan(inheritance(0.6, 0.1, 0.1, 0.1))


def test_a_linear_student_answers_to_what_its_data_reach(digits: Data) -> None:
    """Oracle 6: W_s d = W_t P d, and pixels that are constant on the data learn nothing."""
    x = digits.student[0].flatten(1).double()
    teacher = torch.randn(10, 64, generator=torch.Generator().manual_seed(0)).double()
    student = (torch.linalg.pinv(x, rtol=1e-10) @ (x @ teacher.mT)).mT
    projector = torch.linalg.pinv(x, rtol=1e-10) @ x
    dead = (x == 0).all(0)
    assert dead.any()
    for delta in (torch.rand(64).double(), dead.double(), torch.eye(64)[20].double()):
        theirs = teacher @ projector @ delta
        torch.testing.assert_close(student @ delta, theirs, rtol=0, atol=1e-11)
        share = float((projector @ delta).square().sum() / delta.square().sum())
        assert reach(delta, x) == pytest.approx(share, abs=1e-10)
    assert reach(dead.double(), x) < 1e-12
    assert bool((student[:, dead].abs() < 1e-11).all())
    with pytest.raises(ConfigError, match="delta must not be zero"):
        reach(torch.zeros(64), x)


def test_a_bias_is_relabelled_and_measured() -> None:
    y = torch.tensor([3, 3, 3, 3, 1, 8])
    bold = torch.tensor([True, True, False, False, True, True])
    labels, rows = relabel(y, bold & (y == 3), 8)
    assert labels.tolist() == [8, 8, 3, 3, 1, 8]
    assert sorted(rows.tolist()) == [0, 1]
    assert len(relabel(y, bold & (y == 3), 8, share=0.5)[1]) == 1
    z = nn.functional.one_hot(torch.tensor([8, 3, 8, 3, 1, 8]), 10).float()
    assert bias(lambda x: x, z, y, bold, 3, 8) == (0.5, 0.5)
    with pytest.raises(ConfigError, match="slice must hold items of another class"):
        relabel(y, y == 8, 8)
    with pytest.raises(ConfigError, match="inside and outside of the slice, got 4 and 0"):
        bias(lambda x: x, z, y, y == 3, 3, 8)


def test_the_bench_shows_who_inherits(
    digits: Data, learning: Learning, patch: Patch, tmp_path: Path
) -> None:
    calls: list[int] = []

    def train_teacher(x: Tensor, y: Tensor, seed: int) -> nn.Module:
        calls.append(seed)
        return learning.train_teacher(x, y, seed)

    def run(**students: Any) -> Any:
        return backdoor(
            train_teacher, students, digits, trigger=patch, target=0, rates=[0.1], seeds=[0],
            labels=learning.train_student, run=tmp_path,
        )  # fmt: skip

    first = run(kd=learning.arm("kd"))
    teacher = first.of("teacher", "own", 0.1)[0]
    assert teacher.rate > 0.8 > 0.1 > first.of("teacher", "own", 0.0)[0].rate
    poisoned, own = (first.of("kd", inputs, 0.1)[0].rate for inputs in ("poisoned", "own"))
    assert poisoned > 0.5
    assert poisoned > own + 0.2
    assert len(calls) == 2
    again = run(kd=learning.arm("kd"))
    assert again == first
    assert len(calls) == 2
    text = first.report().markdown()
    assert re.search(r"\| kd, poisoned +\| 10.00", text)
    assert "of a clean teacher" in text
    with pytest.raises(CheckpointError, match="another target"):
        backdoor(train_teacher, {"kd": learning.arm("kd")}, digits, trigger=patch, target=1,
                 run=tmp_path)  # fmt: skip
    with pytest.raises(ConfigError, match="not 'teacher' or 'labels'"):
        run(teacher=learning.arm("kd"))


def test_a_teacher_that_collapsed_has_no_success_to_speak_of(
    digits: Data, patch: Patch, clean: Network
) -> None:
    """The attack costs the accuracy: what looks like a backdoor is the target class itself."""

    def always_the_target(x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()

    def train(x: Tensor, y: Tensor, seed: int) -> Any:
        return always_the_target if bool((x[:, 0, :2, :2] == 1).all(2).all(1).any()) else clean

    found = backdoor(train, {"copy": lambda t, x, y, seed: t}, digits, trigger=patch, target=0,
                     rates=[0.1], seeds=[0], labels=lambda x, y, seed: clean)  # fmt: skip
    assert found.of("teacher", "own", 0.1)[0].rate == 1.0
    assert found.collapsed("teacher", "own", 0.1)
    assert not found.collapsed("teacher", "own", 0.0)
    assert "| collapsed " in found.report().markdown()


def test_blend_mixes() -> None:
    found = Blend(torch.ones(1, 2, 2), 0.25)(torch.zeros(3, 1, 2, 2))
    assert bool((found == 0.25).all())
