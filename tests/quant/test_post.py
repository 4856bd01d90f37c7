"""Post-training: GPTQ against nearest levels, bias correction, activations, learned rounding."""

import copy

import pytest
import torch
from torch import nn

from potstill.core import ConfigError, DataError
from potstill.quant import (
    ActivationGrid,
    Grid,
    activation_grids,
    bake,
    calibrate,
    lower,
    post_training,
)
from potstill.quant import reconstruct as learn_rounding
from potstill.quant.post.inputs import columns


def correlated(rho: float = 0.9) -> tuple[nn.Module, torch.Tensor]:
    """The pair of weights whose nearest levels are the worst choice but one."""
    layer = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.fill_(0.4)
    source = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=source, dtype=torch.float64)
    x[:, 1] = rho * x[:, 0] + (1 - rho**2) ** 0.5 * x[:, 1]
    return nn.Sequential(layer), x


def unit_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Grid, "scale", lambda self, rows, method="mse": torch.ones_like(rows[:, :1])
    )


@torch.no_grad()
def error(model: nn.Module, student: nn.Module, x: torch.Tensor) -> float:
    return float((model(x) - student(x)).square().mean())


def test_outputs_are_kept_where_nearest_levels_lose_them(monkeypatch) -> None:
    """Nearest (0, 0) has error .608; (1, 0) and (0, 1) have .088."""
    unit_steps(monkeypatch)
    model, x = correlated()
    nearest = post_training(model, Grid(3), method="mse").student
    gptq = post_training(model, Grid(3), [x], method="gptq").student
    learned = learn_rounding(model, Grid(3), [x], steps=150, lr=0.05)
    assert error(model, nearest, x) == pytest.approx(0.608, rel=0.05)
    for student in (gptq, learned):
        assert error(model, student, x) == pytest.approx(0.088, rel=0.05)
        assert sorted(bake(student)[0].weight.flatten().tolist()) == [0, 1]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, 2, 1, groups=2),
        nn.Conv2d(4, 6, (1, 3), dilation=2, padding="same", padding_mode="circular"),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Linear(7, 6),
    ],
)
def test_columns_times_rows_is_the_layer(layer) -> None:
    x = torch.randn(2, 4, 9, 7)
    rows = layer.weight.flatten(1).reshape(getattr(layer, "groups", 1), -1, layer.weight[0].numel())
    found = columns(layer, x) @ rows.mT  # [groups positions outputs]
    expected = (
        layer(x)
        - layer.bias.reshape(-1, *[1] * (x.ndim - 2 if x.ndim > 3 else 0))[
            (...,) if isinstance(layer, nn.Conv2d) else (slice(None), 0, 0)
        ]
    )
    if isinstance(layer, nn.Conv2d):
        expected = expected.flatten(2).permute(1, 0, 2).reshape(rows.shape[0], rows.shape[1], -1).mT
    else:
        expected = expected.reshape(1, -1, 6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Bypassing(nn.Module):
    """The forward uses the second layer's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, groups=1), nn.Linear(4, 4)

    def forward(self, x):
        return self.first(x).mean((2, 3)) @ self.second.weight.T


@pytest.fixture(scope="module")
def bypassing():
    torch.manual_seed(0)
    return Bypassing(), [torch.randn(16, 3, 6, 6) + 0.5 for _ in range(3)]


def test_gptq_and_bias_correction_keep_outputs_better(bypassing) -> None:
    model, inputs = bypassing
    first, x = model.first, torch.cat(inputs)
    nearest = post_training(model, Grid(2)).student
    found, missed = post_training(model, Grid(2), inputs, method="gptq")
    corrected = post_training(model, Grid(2), inputs, method="gptq", correct_bias=True).student
    assert missed == ["second.weight"]
    assert error(first, found.first, x) < 0.7 * error(first, nearest.first, x)
    shift = (first(x) - found.first(x)).mean((0, 2, 3)).abs().max()
    assert (first(x) - corrected.first(x)).mean((0, 2, 3)).abs().max() < 1e-4 < shift
    learned = learn_rounding(model, Grid(2), inputs, steps=60)
    assert error(first, learned.first, x) < 0.9 * error(first, nearest.first, x)
    assert len(bake(learned).first.weight[0].unique()) <= 4


def test_inputs_of_layers_are_calibrated(bypassing) -> None:
    model, inputs = bypassing
    student = lower(model, Grid(8))
    assert calibrate(student, inputs) == ["second"]
    grid = activation_grids(student)["first"]
    x = torch.cat(inputs)
    assert float(grid.scale) == pytest.approx(float(x.max() - x.min()) / 255)
    assert grid(torch.zeros(1)) == 0
    other = copy.deepcopy(student)
    activation_grids(other)["first"].scale.mul_(2)  # a copy has a grid of its own
    assert not torch.equal(other(x), student(x))
    assert torch.equal(bake(student)(x), bake(lower(model, Grid(8)))(x))
    narrow = lower(model, Grid(8))
    calibrate(narrow, inputs, percentile=99)
    assert activation_grids(narrow)["first"].scale < grid.scale


def test_gradients_pass_inside_of_the_range_only() -> None:
    grid = ActivationGrid(torch.tensor(-1.0), torch.tensor(1.55))
    x = torch.tensor([-1.2, 0.301, 2.0], requires_grad=True)
    grid(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]
    torch.testing.assert_close(grid(x).detach(), torch.tensor([-1.0, 0.30, 1.55]))
    constant = ActivationGrid(torch.tensor(3.0), torch.tensor(3.0))
    torch.testing.assert_close(constant(torch.tensor([3.0])), torch.tensor([3.0]))
    assert ActivationGrid(torch.tensor(0.0), torch.tensor(0.0))(torch.zeros(2)).eq(0).all()


def test_wrong_calibration_is_refused(bypassing) -> None:
    model, inputs = bypassing
    with pytest.raises(DataError, match="inputs must hold at least one batch, got none"):
        post_training(model, Grid(4), method="gptq")
    with pytest.raises(DataError, match="input of first must be finite, got NaN"):
        post_training(model, Grid(4), [inputs[0] * torch.nan], method="gptq")
    with pytest.raises(ConfigError, match="method must be max, mse or gptq, got 'gtpq'"):
        post_training(model, Grid(4), inputs, method="gtpq")
    student = lower(model, Grid(8))
    with pytest.raises(ConfigError, match="percentile must be in"):
        calibrate(student, inputs, percentile=40)
    with pytest.raises(ConfigError, match="got 0 lowered layers"):
        calibrate(model, inputs)
    calibrate(student, inputs)
    with pytest.raises(ConfigError, match="and 1 calibrated ones"):
        calibrate(student, inputs)
