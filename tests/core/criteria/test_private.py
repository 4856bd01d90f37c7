"""`swing`: hot rows, noise, and the trap of the squared temperature."""

import pytest
import torch
from torch import Tensor

from potstill.core.criteria import kd, swing
from potstill.core.errors import ConfigError, ShapeError
from potstill.core.testing import assert_criterion


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 10, requires_grad=True), 3 * torch.randn(6, 10)


def gradient(value: Tensor, z: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, z)
    return found


def test_rows_that_are_not_private_are_kd_bit_for_bit(logits: tuple[Tensor, Tensor]) -> None:
    z_s, z_t = logits
    open_rows = torch.zeros(6)
    mine, theirs = swing(z_s, z_t, open_rows), kd(z_s, z_t)
    assert torch.equal(mine.detach(), theirs.detach())
    assert torch.equal(gradient(mine, z_s), gradient(theirs, z_s))
    half = torch.tensor([0.0, 1, 0, 1, 0, 1])
    each = swing(z_s, z_t, half, noise=0.1, reduction="none")
    assert torch.equal(each[::2].detach(), kd(z_s, z_t, reduction="none")[::2].detach())


def test_a_constant_factor_protects_and_the_squared_one_does_not(
    logits: tuple[Tensor, Tensor],
) -> None:
    """The trap: with T^2 of each row its gradient becomes that of matching logits."""
    z_s, z_t = (z.double() for z in logits)
    secret = torch.ones(6)
    base = gradient(kd(z_s, z_t, T=4.0), z_s).norm()
    assert gradient(swing(z_s, z_t, secret), z_s).norm() / base < 0.01
    assert gradient(kd(z_s, z_t, T=64.0), z_s).norm() / base > 0.9
    gap = (z_s - z_s.mean(1, keepdim=True)) - (z_t - z_t.mean(1, keepdim=True))
    wanted = gap / z_s.shape[1]
    for T, most in ((64.0, 5e-2), (1e3, 3e-3), (1e6, 5e-6)):
        p, q = torch.softmax(z_t / T, 1), torch.softmax(z_s / T, 1)
        assert float(((T * (q - p) - wanted).norm() / wanted.norm()).detach()) < most


def test_a_hot_row_is_a_row_of_small_weight(logits: tuple[Tensor, Tensor]) -> None:
    z_s, z_t = logits
    secret = torch.tensor([0.0, 1, 0, 1, 0, 1])
    mine = gradient(swing(z_s, z_t, secret, reduction="sum"), z_s)
    drop = gradient(kd(z_s, z_t, weight=1 - secret, reduction="sum"), z_s)
    assert float((mine - drop).norm() / drop.norm()) < 0.02


def test_noise_is_a_distribution_and_repeats(logits: tuple[Tensor, Tensor]) -> None:
    z_s, z_t = logits
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(float(swing(z_s.detach(), z_t, torch.ones(6), noise=0.2)))
    assert values[0] == values[1] != values[2]
    maps_s, maps_t = torch.randn(2, 2, 5, 3, 3).unbind()
    dense = swing(maps_s, maps_t, torch.rand(2, 3, 3), noise=0.1, dim=1)
    assert bool(dense.isfinite())


def test_it_is_a_criterion(logits: tuple[Tensor, Tensor]) -> None:
    z_s, z_t = logits
    assert_criterion(lambda s, t: swing(s, t, torch.linspace(0, 1, 6)), z_s.detach(), z_t)


def test_wrong_options_are_said(logits: tuple[Tensor, Tensor]) -> None:
    z_s, z_t = (z.detach() for z in logits)
    with pytest.raises(ConfigError, match=r"private must be in \[0, 1\]"):
        swing(z_s, z_t, torch.full((6,), 1.5))
    with pytest.raises(ConfigError, match="or NaN"):
        swing(z_s, z_t, torch.full((6,), torch.nan))
    with pytest.raises(ShapeError, match=r"private must be \[6\] like the rows"):
        swing(z_s, z_t, torch.zeros(5))
    with pytest.raises(ConfigError, match="T_max must be at least T"):
        swing(z_s, z_t, torch.zeros(6), T_max=1.0)
    with pytest.raises(ConfigError, match="noise at least 0"):
        swing(z_s, z_t, torch.zeros(6), noise=-1.0)
