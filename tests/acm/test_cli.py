"""The commands end to end, on a handful of tiny images."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from potstill.core.command.cli import main
from potstill.core.command.config import read

SMALL = ["--model", "vit_tiny_patch16_224", "--size", "16", "--patch", "4", "--width", "24",
         "--depth", "2", "--heads", "3", "--classes", "2", "--pool", "avg"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = folder / ("light" if i % 2 else "dark") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        values = rng.integers(0, 120, (16, 16, 3)) + 130 * (i % 2)
        Image.fromarray(values.astype(np.uint8)).save(path)
    return folder


SHORT = ["--distill.epochs", "2", "--gate.epochs", "2", "--finetune.epochs", "2",
         "--batch", "8", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "a"
    assert run("convert", folder, *SMALL) == 0
    return folder


@pytest.fixture(scope="module")
def distilled(data, converted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled") / "run"
    assert run("distill", converted, folder, "--data", data, *SHORT) == 0
    return folder


def run(*words):
    return main([str(word) for word in ("acm", *words)])


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_the_configuration_of_a_run_repeats_it(distilled, tmp_path):
    found = read(distilled / "config.yaml")
    assert set(found) == {"model", "out", "images", "augment", "distill", "gate", "finetune",
                          "budget", "budget_weight", "threshold", "smoothing",
                          "training"}  # fmt: skip
    again = tmp_path / "again"
    assert run("distill", "--config", distilled / "config.yaml", "--out", again) == 0
    assert same(weights(again), weights(distilled))
    results = [json.loads((folder / "result.json").read_text()) for folder in (distilled, again)]
    assert all(result.pop("seconds") >= 0 for result in results)
    assert results[0] == results[1]


def test_the_same_command_returns_the_finished_run_and_another_one_is_refused(
    data, converted, distilled, capsys
):
    before = weights(distilled)
    history = (distilled / "3-finetune" / "history.jsonl").read_text()
    words = ["distill", converted, distilled, "--data", data, *SHORT]
    assert run(*words) == 0
    assert same(weights(distilled), before)
    assert (distilled / "3-finetune" / "history.jsonl").read_text() == history
    for flag, value, name in (
        ("--gate.lr", 0.5, "gate.lr"), ("--budget", 0.3, "budget"), ("--seed", 3, "training.seed"),
    ):  # fmt: skip
        assert run(*words, flag, value) == 2
        assert f"another {name} (" in capsys.readouterr().err


def test_seeds_differ(data, converted, distilled, tmp_path):
    words = ["distill", converted, tmp_path, "--data", data, *SHORT, "--seed", "1"]
    assert run(*words) == 0
    assert not same(weights(tmp_path), weights(distilled))


def test_a_phase_without_epochs_is_left_out(data, converted, tmp_path):
    words = ["--data", data, "--batch", "8", "--device", "cpu", "--distill.epochs", "1",
             "--gate.epochs", "0", "--finetune.epochs", "0"]  # fmt: skip
    assert run("distill", converted, tmp_path, *words) == 0
    assert not (tmp_path / "2-gate").exists()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["phases"] == ["distill"]


@pytest.mark.dist
def test_two_processes_do_what_one_does(data, converted, on_two_processes):
    words = [*SHORT[:6], "--batch", "{share:8}", "--data", str(data)]
    on_two_processes({"distill": ["acm", "distill", str(converted), *words]})


@pytest.mark.parametrize("option", ["epochs", "steps", "seconds", "lr", "parallel"])
def test_what_a_phase_has_of_its_own_or_nobody_honours_is_refused(option, capsys):
    value = "fsdp" if option == "parallel" else "1"
    assert run("distill", "a", "x", "--data", "y", f"--training.{option}", value) == 2
    said = capsys.readouterr().err
    named = "must be ddp" if option == "parallel" else f"training.{option} must be left out"
    assert named in said


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["convert", "x", "--model", "vit_of_nowhere"], 2, "must be one that timm can create"),
        (["convert", "x", *SMALL, "--learners", "0"], 2, "learners must be at least 1, got 0"),
        (["convert", "x", *SMALL, "--checkpoint", "no.pth"], 1, "ends in .safetensors, .pth"),
        (["time", "--backend", "tritn"], 2, "did you mean 'triton'"),
        (["time", "--device", "tpu"], 2, "device must be auto, cpu, cuda or mps"),
        (["fit", "a", "x", "--data", "y", "--milliseconds", "8"], 1, "nothing there"),
        (["distill", "nowhere", "x", "--data", "y"], 1, "nothing there"),
        (["distill", "a", "x", "--data", "y", "--budget", "0"], 2, r"budget must be in (0, 1]"),
        (["profile", "a", "--data", "y", "--statistics", "z"], 2, "must be model, imagenet or"),
        (["profile", "a", "--data", "y", "--std", "0.5"], 2, "must be one number per channel"),
        (["convert", "x", "--mean", "0.5"], 2, "must be one number per channel"),
        (["distill", "a", "x", "--data", "y", "--augment.scale", "0", "1"], 2, "shares at most 1"),
        (["distill", "a", "x", "--data", "y", "--augment.erase", "-1"], 2, "must not be negative"),
        (["distill", "a", "x", "--data", "y", "--augment.mixup", "1", "--batch", "3"], 2, "even"),
        (["profile", "a", "--data", "y", "--batch", "0"], 2, "batch must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(words, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == code
    assert message in capsys.readouterr().err
