import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.gradcheck import GradcheckError

from potstill.core.testing import (
    assert_criterion,
    full_test,
    requires_cuda,
    requires_data,
    seeded,
    unchanged,
    with_package,
)

S, T = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def kd(s, t):
    return F.kl_div(
        F.log_softmax(s.float() if s.dtype != torch.float64 else s, -1),
        F.log_softmax(t.detach().to(s.dtype if s.dtype == torch.float64 else torch.float32), -1),
        log_target=True,
        reduction="batchmean",
    )


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        with seeded(1):
            self.map = nn.Linear(4, 3)

    def forward(self, s, t):
        return (self.map(s.to(self.map.weight.dtype)) - t.detach()[:, :3]).square().mean()


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, s):
        return s.square().mean()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.ones(5, 4, dtype=grad.dtype)


def writes(s, t):
    t.data.add_(1)
    return (s - t.detach()).square().mean()


@pytest.mark.parametrize("criterion", [kd, Projected()])
def test_a_good_criterion_passes(criterion):
    torch.testing.assert_close(assert_criterion(criterion, S, T), criterion(S, T).detach())


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda s, t: (s - t.detach()).square(), "scalar"),
        (lambda s, t: (s - t.detach()).abs().mean().log() * float("inf"), "finite"),
        (lambda s, t: (s.detach() - t.detach()).square().mean(), "gradient to the student"),
        (lambda s, t: (s - t).square().mean(), "argument 1 must get no gradient"),
        (lambda s, t: (s * 0).sum() + 1, "vanish"),
        (lambda s, t: (s - s.detach()).abs().sqrt().mean(), "gradient must be finite"),
        (writes, "argument 1 was written to"),
        (lambda s, t: ((s - t.detach()) * 1e4).square().sum().to(s.dtype), "finite in"),
        (lambda s, t: 1.0, "must return a tensor"),
    ],
)
def test_a_bad_criterion_is_caught(criterion, message):
    with pytest.raises(AssertionError, match=message):
        assert_criterion(criterion, S, T, gradcheck=False)


def test_a_wrong_gradient_is_caught():
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        assert_criterion(lambda s, t: WrongGradient.apply(s), S, T, half=False)


def test_unchanged_watches_buffers_gradients_and_modes():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(AssertionError, match=r"1\.running_mean must stay"), unchanged(model):
        model(torch.randn(4, 2))
    with pytest.raises(AssertionError, match=r"0\.weight must have no gradient"), unchanged(model):
        model[0](torch.ones(2)).sum().backward()
    model.zero_grad()
    with pytest.raises(AssertionError, match="mode changed"), unchanged(model):
        model.eval()
    with unchanged(model):
        model(torch.randn(4, 2))


def test_seeded_is_repeatable_and_leaves_the_stream_alone():
    before = torch.get_rng_state()
    with seeded(3) as rng:
        first = torch.rand(2), torch.rand(2, generator=rng)
    with seeded(3) as rng:
        torch.testing.assert_close(first, (torch.rand(2), torch.rand(2, generator=rng)))
    assert torch.equal(before, torch.get_rng_state())


def marks(decorate):
    def test():
        pass

    return {mark.name: mark for mark in decorate(test).pytestmark}


def test_marks(monkeypatch, tmp_path):
    found = marks(requires_cuda)
    assert found["skipif"].args == (not torch.cuda.is_available(),)
    assert "cuda" in found

    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    (tmp_path / "here").mkdir()
    found = marks(requires_data("here", "gone"))
    assert found["skipif"].args == (True,)
    assert "needs gone below" in found["skipif"].kwargs["reason"]
    assert found["data"].args == ("here", "gone")
    assert marks(requires_data("here"))["skipif"].args == (False,)

    assert marks(with_package("no_such_thing"))["skipif"].args == (True,)
    assert marks(with_package("torch"))["skipif"].args == (False,)

    monkeypatch.setenv("POTSTILL_FULL", "1")
    assert marks(full_test)["skipif"].args == (False,)
    monkeypatch.delenv("POTSTILL_FULL")
    assert os.environ.get("POTSTILL_FULL") is None
    assert marks(full_test)["skipif"].args == (True,)
