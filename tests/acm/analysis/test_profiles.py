import math

import pytest
import torch

from potstill.acm import costs, deacmize, predict, profile, record_gates, set_mode, share
from potstill.core.errors import ConfigError


def test_figures_are_those_of_the_definition(lively, images):
    labels = torch.randint(0, 5, (6,))
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    found = profile(lively, batches, dense=deacmize(lively, 4), blocks=2)
    with torch.no_grad(), record_gates(lively) as readings:
        logits = lively(images)
    torch.testing.assert_close(found.images, share(readings))
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert found.budget == pytest.approx(float(share(readings).mean()))
    assert found.spread == pytest.approx(float(share(readings).std(unbiased=False)))
    assert found.macs == pytest.approx(costs(lively, images[:1]).at(found.budget))
    assert found.milliseconds > 0
    assert found.dense_milliseconds > 0
    assert found.batch == 4
    for name, reading in readings.items():
        expected = torch.bincount(reading.choices.flatten(), minlength=5) / reading.choices.numel()
        torch.testing.assert_close(found.choices[name], expected)
        assert found.modules[name] == pytest.approx(float(reading.choices.float().mean()) / 4)


def test_every_count_of_macs_has_its_milliseconds(lively, images):
    row = profile(set_mode(lively, 2), [images], blocks=1).row()
    assert row["budget"] == 0.5
    assert row["ms (batch 6)"] > 0
    assert row["MMACs"] > 0
    assert math.isnan(row["top-1 %"])  # no labels


def test_predict(adaptive, images):
    logits, labels = predict(adaptive, [images[:3], images[3:]])
    torch.testing.assert_close(logits, adaptive(images).detach())
    assert labels is None


def test_bad_input(adaptive, vit):
    with pytest.raises(ConfigError, match="batches must hold at least one batch"):
        profile(adaptive, [])
    with pytest.raises(ConfigError, match="must have adaptive modules, got a VisionTransformer"):
        profile(vit, [torch.zeros(1, 3, 16, 16)])
