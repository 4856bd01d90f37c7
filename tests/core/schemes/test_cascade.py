"""The cascade and its bound."""

import math

import pytest
import torch
from torch import nn

from potstill.core.errors import ConfigError, ShapeError
from potstill.core.schemes import Cascade, calibrate, most_likely_above


def test_the_bound_by_hand() -> None:
    """0 of 100 at 95 % is 1 - .05^(1/100)."""
    assert most_likely_above(0, 100, 0.95) == pytest.approx(1 - 0.05**0.01, abs=1e-9)
    assert most_likely_above(3, 200, 0.95) == pytest.approx(0.038310, abs=1e-6)
    assert most_likely_above(5, 5) == 1.0
    with pytest.raises(ConfigError, match="count >= 1"):
        most_likely_above(0, 0)


def test_everything_is_deferred_where_the_bound_cannot_be_had() -> None:
    z = 5 * torch.eye(3).repeat(20, 1)
    assert calibrate(z[:44], z[:44], 0.05) == math.inf
    assert calibrate(z[:45], z[:45], 0.05) < 1
    assert calibrate(z[:0], z[:0], 0.05) == math.inf
    with pytest.raises(ShapeError, match="of one shape"):
        calibrate(z, z[:, :2], 0.05)
    with pytest.raises(ConfigError, match=r"epsilon must be in \(0, 1\), got 0"):
        calibrate(z, z, 0)


def test_the_kept_part_keeps_its_promise() -> None:
    """Students that are wrong where they are unsure; new items of the same kind."""
    rng = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(2):
        sure = torch.rand(4000, generator=rng)
        z_s = torch.stack([4 * sure, torch.zeros(4000)], 1)
        differs = torch.rand(4000, generator=rng) > 0.5 + sure / 2
        z_t = torch.where(differs[:, None], z_s.flip(1), z_s)
        threshold = calibrate(z_s[:2000], z_t[:2000], 0.1)
        kept = ~Cascade(nn.Identity(), nn.Identity(), threshold).doubts(z_s[2000:])
        assert bool(kept.any())
        held += float(differs[2000:][kept].float().mean()) <= 0.1 + 0.03
    assert held == 2


def test_the_teacher_sees_only_what_is_in_doubt() -> None:
    seen = []

    class Teacher(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return -x

    cascade = Cascade(nn.Identity(), Teacher(), 0.9)
    x = torch.tensor([[9.0, 0.0], [0.1, 0.0], [0.0, 0.2]])
    assert cascade(x).tolist() == [[9.0, 0.0], pytest.approx([-0.1, 0.0]), pytest.approx([0, -0.2])]
    assert seen == [2]
    assert cascade.deferred == pytest.approx(2 / 3)
    cascade.threshold = 0.0
    assert torch.equal(cascade(x), x)
    assert seen == [2]
    cascade.threshold = math.inf
    assert torch.equal(cascade(x), -x)
    with pytest.raises(ConfigError, match="threshold must be at least 0"):
        Cascade(nn.Identity(), Teacher(), -1)
