"""Training: it learns, it repeats, it starts warm, it goes on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.core import Run
from potstill.core.command.cli import main
from potstill.core.errors import CheckpointError, ConfigError, DataError
from potstill.core.store.data import root
from potstill.core.testing import requires_data
from potstill.sr import (
    IMDN,
    TRAINING,
    Picture,
    Terms,
    degrade,
    load_model,
    prepare,
    read_image,
    save_model,
    train,
    warm_start,
    write_image,
)
from potstill.sr.config import StudentConfig, TrainConfig
from potstill.sr.evaluation.scores import evaluate, find_set, mean
from potstill.sr.images.reading import find_photographs
from potstill.sr.training.jobs import Train

QUICK = replace(TRAINING, steps=20, batch=4, ema=0.0, device="cpu")


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
    train(network, pairs, replace(TRAINING, steps=600, ema=0.0, device="cpu"), progress=False)
    average = mean(evaluate(network, find_set("Set5")))
    assert average.ours.psnr >= average.bicubic.psnr + 1.5


def test_twenty_steps_repeat_bit_for_bit(photograph):
    pairs = degrade([photograph], 2)
    runs = [
        [row["loss"] for row in train(student(), pairs, QUICK, patch=8, progress=False)]
        for _ in "ab"
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 20


def test_loss_falls(photograph):
    training = replace(QUICK, steps=150, batch=8)
    rows = train(student(), degrade([photograph], 2), training, patch=12, progress=False)
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_distillation_through_the_objective(photograph):
    rows = train(
        student(),
        degrade([photograph], 2),
        replace(QUICK, steps=3, batch=2),
        terms=Terms(output=0.5, affinity=1.0, wavelet=0.1, contrastive=0.1),
        teacher=IMDN(2, 16, 4),
        patch=8,
        progress=False,
    )
    assert {"task", "output", "wavelet", "contrastive", "feature.0", "feature.1"} <= set(rows[-1])


def test_held_out_score_keeps_the_best_weights(photograph):
    network, seen = student(), []

    def score(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return -abs(len(seen) - 2)  # the second is best

    training = replace(TRAINING, steps=20, batch=2, device="cpu")
    options = {"patch": 8, "score": score, "validate_every": 5, "progress": False}
    train(network, degrade([photograph], 2), training, **options)
    assert len(seen) == 4
    torch.testing.assert_close(network.state_dict()["collect.weight"], seen[1]["collect.weight"])


def test_a_run_leaves_curves_and_weights(tmp_path, photograph):
    network = student()
    train(network, degrade([photograph], 2), QUICK, patch=8, run=Run(tmp_path), progress=False)
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
        (lambda: replace(TRAINING, steps=0), "steps must be positive, got 0"),
        (lambda: replace(TRAINING, lr=0), "lr must be positive, got 0"),
        (lambda: Terms(wavelet=-1), "wavelet must not be negative, got -1"),
        (lambda: TrainConfig(Path("a"), out=Path("b"), patch=0), "patch must be at least 1, got 0"),
        (
            lambda: TrainConfig(Path("a"), out=Path("b"), training=replace(TRAINING, workers=2)),
            "training.workers must be 0, got 2; patches are cut in the main process",
        ),
        (lambda: StudentConfig(channels=10), "channels must be a multiple of 4, got 10"),
        (lambda: StudentConfig(blocks=0), "blocks must be at least 1, got 0"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.fixture
def photographs(tmp_path, photograph):
    (tmp_path / "photos").mkdir()
    for name, image in {"a": photograph, "b": photograph[::-1].copy()}.items():
        write_image(Picture(image), tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("verb", ["train", "distill"])
def test_config_yaml_repeats_the_run(verb, photographs, tmp_path, capsys):
    teacher = save_model(IMDN(2, 12, 2), tmp_path / "teacher.safetensors")
    init = save_model(IMDN(3, 8, 1, "bicubic"), tmp_path / "init.safetensors")
    words = ["sr", verb, str(photographs), "--patch", "8", "--channels", "8", "--blocks", "1"]
    words += ["--steps", "4", "--batch", "2", "--device", "cpu", "--init", str(init)]
    words += ["--validate", str(photographs), "--validate-every", "2"]
    if verb == "distill":
        words += ["--teacher", str(teacher), "--affinity", "1", "--contrastive", "0.1"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*words, "--out", str(first)]) == 0
    again = ["sr", verb, "--config", str(first / "config.yaml"), "--out", str(second)]
    assert main(again) == 0
    written = [load_model(out / "imdn-x2.safetensors") for out in (first, second)]
    ours, theirs = (model.state_dict() for model in written)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    figures = [json.loads((out / "result.json").read_text()) for out in (first, second)]
    assert all(found.pop("seconds") > 0 for found in figures)
    assert figures[0] == figures[1]

    # the same command finds the finished run, another option is refused by name
    before = (first / "history.jsonl").read_text()
    assert main([*words, "--out", str(first)]) == 0
    assert (first / "history.jsonl").read_text() == before
    capsys.readouterr()
    words[words.index("--patch") + 1] = "9"
    assert main([*words, "--out", str(first)]) == 2
    assert "another patch (8, now 9)" in capsys.readouterr().err


def test_a_killed_run_is_continued_to_the_same_weights(photographs, tmp_path):
    def config(out):
        return TrainConfig(
            photographs, out=tmp_path / out, student=StudentConfig(channels=8, blocks=1), patch=8,
            training=replace(TRAINING, steps=6, batch=2, device="cpu"),
        )  # fmt: skip

    class Killed(Exception):
        pass

    def kill(row, share):
        if row["step"] == 3:
            raise Killed

    whole = Train(config("whole")).run(progress=False)
    with pytest.raises(Killed):
        Train(config("parts")).run(progress=kill)
    parts = Train(config("parts")).run(progress=False)
    assert parts.summary["loss"] == whole.summary["loss"]


def test_photographs_have_no_epoch(photographs, tmp_path, capsys):
    words = ["sr", "train", str(photographs), "--out", str(tmp_path / "t"), "--patch", "8"]
    assert main([*words, "--epochs", "2", "--device", "cpu"]) == 2
    assert "give steps= or seconds= instead" in capsys.readouterr().err


def test_a_run_is_not_continued_with_other_photographs(tmp_path, photograph):
    options = {"patch": 8, "run": Run(tmp_path), "progress": False}
    train(student(), degrade([photograph], 2), QUICK, **options)
    with pytest.raises(CheckpointError, match="data"):
        train(student(), degrade([255 - photograph], 2), replace(QUICK, steps=30), **options)


def test_a_damaged_cache_is_refused_by_name(photographs, tmp_path):
    prepare(photographs, 2, tmp_path / "cache")
    path = min((tmp_path / "cache").iterdir())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"{path.name} must be a photograph that potstill cached"):
        prepare(photographs, 2, tmp_path / "cache")


@pytest.mark.dist
def test_two_processes_do_what_one_does(photographs, tmp_path, on_two_processes):
    teacher = save_model(IMDN(2, 12, 2), tmp_path / "teacher.safetensors")
    words = [str(photographs), "--patch", "8", "--channels", "8", "--blocks", "1", "--steps", "4"]
    words += ["--batch", "{share:4}", "--validate", str(photographs), "--validate-every", "2"]
    terms = ["--teacher", str(teacher), "--affinity", "1", "--wavelet", "0.1"]
    on_two_processes(
        {"train": ["sr", "train", *words], "distill": ["sr", "distill", *words, *terms]}
    )
