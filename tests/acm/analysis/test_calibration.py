import pytest
import torch
from torch import nn

from potstill.acm import acmize, acms, calibrate, record_gates, set_mode, share
from potstill.core.errors import ConfigError


def mean_share(model, images):
    with torch.no_grad(), record_gates(model.eval()) as readings:
        model(images)
    return float(share(readings).mean())


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.9])
def test_hits_the_budget_here_and_on_other_images(lively, budget):
    images, others = torch.randn(2, 200, 3, 16, 16)
    found = calibrate(lively, [images[:100], images[100:]], budget, tolerance=0.002)
    assert abs(found.budget - budget) <= 0.01
    assert mean_share(lively, images) == pytest.approx(found.budget, abs=1e-6)
    assert abs(mean_share(lively, others) - budget) <= 0.03
    assert lively.acm_budget == budget


def test_touches_the_tilt_alone_and_keeps_the_training_mode(lively):
    images = torch.randn(40, 3, 16, 16)
    before = {n: p.clone() for n, p in lively.named_parameters()}
    lively.train()
    found = calibrate(lively, [(images, torch.zeros(40))], 0.3, tolerance=0.02)
    assert lively.training
    assert all(torch.equal(p, before[n]) for n, p in lively.named_parameters())
    for acm in acms(lively).values():
        assert float(acm.gate.tilt) == pytest.approx(found.tilt)


def test_an_untrained_gate_can_be_calibrated_too(vit):
    model = acmize(vit)
    images = torch.randn(64, 3, 16, 16)
    assert mean_share(model, images) == 1
    assert calibrate(model, [images], 0.5, tolerance=0.05).budget < 0.8


def test_bad_input(vit, lively):
    images = [torch.randn(2, 3, 16, 16)]
    for budget in (0.0, -0.1, 1.1):
        with pytest.raises(ConfigError, match=r"calibrate: budget must be in \(0, 1\]"):
            calibrate(lively, images, budget)
    with pytest.raises(ConfigError, match=r"must be from 0\.25 to 1, what this model can reach"):
        calibrate(acmize(vit, ("qkvo",)), images, 0.1)
    with pytest.raises(ConfigError, match="must hold at least one batch, got none"):
        calibrate(lively, [], 0.5)
    with pytest.raises(ConfigError, match="must be in mode 'gated', got none; call set_mode"):
        calibrate(set_mode(lively, 2), images, 0.5)
    with pytest.raises(ConfigError, match="must have adaptive modules"):
        calibrate(nn.Linear(2, 2), images, 0.5)
