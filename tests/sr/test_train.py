"""Training: it learns, it repeats, it starts warm, it goes on."""

import numpy as np
import pytest
import torch

from potstill.core import Run
from potstill.core.errors import ConfigError
from potstill.core.store.data import root
from potstill.core.testing import requires_data
from potstill.sr import IMDN, degrade, train, warm_start
from potstill.sr.config import StudentConfig, TrainConfig
from potstill.sr.data import find_photographs
from potstill.sr.evaluate import evaluate, find_set, mean
from potstill.sr.images import read_image

QUICK = TrainConfig(steps=20, batch=4, patch=8, ema=0, device="cpu")


def student() -> IMDN:
    torch.manual_seed(0)
    return IMDN(2, 8, 2, "bicubic")


# 600 steps of the 122,620-parameter student take about a minute of one core.
@pytest.mark.slow
@requires_data("sr/T91", "sr/Set5")
def test_600_steps_beat_bicubic_by_a_decibel_and_a_half():
    torch.manual_seed(0)
    network = IMDN(2, 32, 4, "bicubic")
    torch.nn.init.zeros_(network.upsampler.weight)
    pairs = degrade([read_image(p).rgb8() for p in find_photographs(root() / "sr/T91")], 2)
    train(network, pairs, TrainConfig(steps=600, ema=0, device="cpu"), progress=False)
    average = mean(evaluate(network, find_set("Set5")))
    assert average.ours.psnr >= average.bicubic.psnr + 1.5


def test_twenty_steps_repeat_bit_for_bit(photograph):
    pairs = degrade([photograph], 2)
    runs = [[row["loss"] for row in train(student(), pairs, QUICK, progress=False)] for _ in "ab"]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 20


def test_loss_falls(photograph):
    config = TrainConfig(steps=150, batch=8, patch=12, ema=0, device="cpu")
    losses = [
        row["loss"] for row in train(student(), degrade([photograph], 2), config, progress=False)
    ]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_distillation_through_the_objective(photograph):
    config = TrainConfig(steps=3, batch=2, patch=8, output=0.5, affinity=1.0, wavelet=0.1,
                         contrastive=0.1, device="cpu")  # fmt: skip
    rows = train(
        student(), degrade([photograph], 2), config, teacher=IMDN(2, 16, 4), progress=False
    )
    assert {"task", "output", "wavelet", "contrastive", "feature.0", "feature.1"} <= set(rows[-1])


def test_held_out_score_keeps_the_best_weights(photograph):
    network, seen = student(), []

    def score(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return -abs(len(seen) - 2)  # the second is best

    config = TrainConfig(steps=20, batch=2, patch=8, validate_every=5, device="cpu")
    train(network, degrade([photograph], 2), config, score=score, progress=False)
    assert len(seen) == 4
    torch.testing.assert_close(network.state_dict()["collect.weight"], seen[1]["collect.weight"])


def test_a_run_leaves_curves_and_weights(tmp_path, photograph):
    network = student()
    train(network, degrade([photograph], 2), QUICK, run=Run(tmp_path), progress=False)
    assert {"curves.png", "history.jsonl", "student.safetensors"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_x3_starts_from_x2_but_for_the_upsampler():
    source, target = IMDN(2, 8, 2), IMDN(3, 8, 2)
    fresh = target.upsampler.weight.clone()
    copied = warm_start(target, source)
    assert copied == len(source.state_dict()) - 2
    assert torch.equal(target.collect.weight, source.collect.weight)
    assert torch.equal(target.upsampler.weight, fresh)
    with pytest.raises(ConfigError, match="no tensor that fits"):
        warm_start(torch.nn.Linear(2, 2), source)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(steps=0), "steps must be at least 1"),
        (lambda: TrainConfig(learning_rate=0), "learning_rate must be positive, got 0"),
        (lambda: TrainConfig(wavelet=-1), "wavelet must not be negative, got -1"),
        (lambda: StudentConfig(channels=10), "channels must be a multiple of 4, got 10"),
        (lambda: StudentConfig(blocks=0), "blocks must be at least 1, got 0"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
