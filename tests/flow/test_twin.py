"""TwinFlow: exact networks have no residual, and equal twins nothing to rectify."""

import pytest
import torch
from torch import nn

from potstill.core import ConfigError
from potstill.flow import Batch, PointNet, Twin, TwinFlow

MEAN, DEVIATION = torch.tensor([1.0, -2.0]).double(), 0.5


class ExactJumps(nn.Module):
    """Mean velocity of a point mass at m: x = m + t e moves on a straight line, F = (x - m) / t."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()).double())

    def forward(self, x, time, condition=None):
        point = x[:, :2]
        velocity = (point - MEAN) / time.abs()[:, None].clamp_min(1e-9)
        return torch.cat([velocity + self.unused, x[:, 2:]], 1)


def batch(n: int = 512) -> Batch:
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(z, real=MEAN.expand(n, 2))


def test_an_exact_network_has_no_residual() -> None:
    """Of data that are one point every path is straight: all four terms vanish."""
    losses = TwinFlow(Twin(ExactJumps()))(batch(), 0)
    assert {name: float(value) for name, value in losses.terms.items()} == {
        name: pytest.approx(0, abs=1e-16) for name in ("flow", "jump", "fake", "rectify")
    }


def test_equal_twins_have_nothing_to_rectify() -> None:
    """F(., -t, .) = F(., t, .): the gradient of the term is zero, whatever the samples."""
    torch.manual_seed(0)
    net = PointNet(3, 8, 2).double()

    class Even(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x, time, condition=None):
            return self.net(torch.cat([x[:, :2], x[:, 2:].abs()], 1), time.abs())

    for model, still in ((Even(), True), (net, False)):
        only = {"flow": 0.0, "jump": 0.0, "fake": 0.0}
        net.zero_grad()
        TwinFlow(Twin(model), only)(batch(), 0).total.backward()
        assert all(not bool(p.grad.any()) for p in net.parameters()) == still


def test_what_cannot_be_is_refused() -> None:
    student = Twin(PointNet(3, 8, 2))
    with pytest.raises(ConfigError, match="real items must be in the batch, got none"):
        TwinFlow(student)(Batch(torch.zeros(2, 2)), 0)
    with pytest.raises(ConfigError, match="weights of flow, jump, fake, rectify"):
        TwinFlow(student, {"base": 1.0})
