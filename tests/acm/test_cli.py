"""The commands end to end, on a handful of tiny images."""

import json

import numpy as np
import pytest
from PIL import Image

from potstill.core.command.cli import main

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


def run(*words):
    return main([str(word) for word in ("acm", *words)])


def test_from_a_dense_model_to_a_graph(data, tmp_path, capsys):
    images = ["--data", data, "--batch", "8"]
    short = ["--distill", "2", "--gate", "2", "--finetune", "2", "--device", "cpu"]
    assert run("convert", tmp_path / "a", *SMALL) == 0
    assert "dense MMACs" in capsys.readouterr().out
    assert run("distill", tmp_path / "a", tmp_path / "run", *images, *short) == 0
    assert "phase 3 loss" in capsys.readouterr().out
    assert run("distill", tmp_path / "a", tmp_path / "run", *images, *short) == 0  # continues
    capsys.readouterr()

    trained = tmp_path / "run" / "model"
    assert run("calibrate", trained, 0.4, tmp_path / "b", *images) == 0
    assert "tilt" in capsys.readouterr().out
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["budget"] == 0.4
    assert config["phases"] == ["distill", "gate", "finetune"]

    page = tmp_path / "page"
    assert run("profile", tmp_path / "b", *images, "--out", page, "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "gated" in shown
    assert "k = 4" in shown
    assert "dense" in shown
    assert (page / "index.html").stat().st_size > 10_000

    assert run("export", tmp_path / "b", tmp_path / "m.pt2") == 0
    assert (tmp_path / "m.pt2").exists()


def test_bench(tmp_path, capsys):
    words = ["--model", "vit_tiny_patch16_224", "--batch", "1", "--budgets", "0.5",
             "--device", "cpu", "--out", tmp_path]  # fmt: skip
    assert run("bench", *words) == 0
    assert "dense ms" in capsys.readouterr().out
    assert (tmp_path / "plot-1.png").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["convert", "x", "--model", "vit_of_nowhere"], 2, "must be one that timm can create"),
        (["convert", "x", *SMALL, "--learners", "0"], 2, "learners must be at least 1, got 0"),
        (["convert", "x", *SMALL, "--checkpoint", "no.pth"], 1, "must be a .safetensors file"),
        (["bench", "--backend", "tritn"], 2, "did you mean 'triton'"),
        (["bench", "--device", "tpu"], 2, "device must be auto, cpu, cuda or mps"),
        (["distill", "nowhere", "x", "--data", "y"], 1, "nothing there"),
        (["distill", "a", "x", "--data", "y", "--budget", "0"], 2, r"budget must be in (0, 1]"),
        (["profile", "a", "--data", "y", "--statistics", "z"], 2, "must be imagenet or cifar10"),
        (["profile", "a", "--data", "y", "--batch", "0"], 2, "batch must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(words, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == code
    assert message in capsys.readouterr().err
