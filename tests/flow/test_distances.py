"""Distances against closed forms."""

import pytest
import torch

from potstill.core import ConfigError, ShapeError
from potstill.flow import coverage, fid, gaussian_mmd2, mmd2, sliced_w2


def two(n: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, 2, generator=rng, dtype=torch.float64)
    return x, 0.5 * y + torch.tensor([1.0, -2.0])


def test_mmd_estimates_its_closed_form() -> None:
    x, y = two()
    assert gaussian_mmd2(1.0, 0.5, 5.0, 2) == pytest.approx(0.7073840108, abs=1e-10)
    assert mmd2(x, y, [1.0]) == pytest.approx(0.7073840108, abs=0.02)
    assert abs(mmd2(x[:2000], x[2000:], [1.0])) < 2e-3
    a, b = x[:3], y[:4]
    wanted = mean(a, a, 1) + mean(b, b, 1) - 2 * mean(a, b, 0)
    assert mmd2(a, b, [1.0]) == pytest.approx(wanted, abs=1e-12)


def mean(a: torch.Tensor, b: torch.Tensor, left_out: int) -> float:
    """Mean of the kernel over pairs, without the ``left_out`` of each row with itself."""
    kernel = (-torch.cdist(a, b).square() / 2).exp()
    return float((kernel.sum() - left_out * len(a)) / (len(a) * (len(b) - left_out)))


def test_sliced_w2_of_gaussians() -> None:
    x, y = two()
    wanted = (5 / 2 + (1 - 0.5) ** 2) ** 0.5
    assert wanted == pytest.approx(1.6583124, abs=1e-7)
    assert sliced_w2(x[::4], y[::4], 1024) == pytest.approx(wanted, abs=0.08)
    assert sliced_w2(x[::4], y[:700], 1024) == pytest.approx(wanted, abs=0.08)
    assert sliced_w2(x, x) == 0
    assert sliced_w2(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(5 / 2**0.5, abs=0.3)


def test_coverage_sees_a_mode_that_is_missing() -> None:
    x, _ = two(500)
    modes = torch.cat([x, x + 20])
    assert coverage(modes, modes) == 1
    assert coverage(x, modes) == 0.5
    with pytest.raises(ConfigError, match="more than 5 points, got 5"):
        coverage(x, x[:5])


def test_what_says_nothing_is_refused() -> None:
    x, y = two(10)
    with pytest.raises(ShapeError, match="of one size"):
        mmd2(x, y[:, :1])
    with pytest.raises(ShapeError, match="flatten images first"):
        sliced_w2(x[:, :, None], y)
    with pytest.raises(ConfigError, match="at least 10000 samples .* got 10 and 10"):
        fid(x, y)
