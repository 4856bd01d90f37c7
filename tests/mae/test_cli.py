"""The commands that do not train."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from potstill.core.command.cli import main
from potstill.mae import load_model


def test_probe(run, pictures, capsys):
    words = ["mae", "probe", "--init", str(run), "--device", "cpu", "--neighbors", "3",
             "--epochs", "20", "--data.train", str(pictures / "train"),
             "--data.test", str(pictures / "test")]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "knn" in out
    assert "100" in out


def test_export_of_a_folder_for_timm(run, tmp_path):
    assert main(["mae", "export", str(run), str(tmp_path / "folder")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True, num_classes=0)
    expected = load_model(str(run)).model.state_dict()
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


def test_torchrun_may_name_the_module(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["potstill", "mae", "recipe"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("potstill.core", run_name="__main__")
    assert ended.value.code == 0
    assert "light_vit_small" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "name"),
    [("timm", "t.safetensors"), ("mae", "m.pth"), ("dmae", "d.pth"), ("potstill", "p.safetensors"),
     ("pt2", "s.pt2")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_export(run, tmp_path, form, name, capsys):
    assert main(["mae", "export", str(run), str(tmp_path / name), "--form", form]) == 0
    assert (tmp_path / name).stat().st_size > 10_000
    assert "wrote" in capsys.readouterr().out


def test_inspect_draws_three_pictures(run, capsys):
    words = ["mae", "inspect", str(run), "--count", "2", "--tokens", "128"]
    assert main(words) == 0
    for name in ("reconstruction.png", "alignment_error.png", "cka.png"):
        pixels = np.asarray(Image.open(run / name).convert("L"))
        assert pixels.std() > 5, f"{name} is blank"
    assert (run / "cka.csv").read_text().startswith("state,student_block,teacher_block,cka")


@pytest.mark.parametrize("batch", ["--batch", "--batch-size"])
def test_time_times_your_models(tmp_path, batch):
    words = ["mae", "time", "--ratios", "0.75", "--repeats", "1", batch, "2", "--device", "cpu",
             "--out", str(tmp_path / "steps.png")]  # fmt: skip
    for whose in ("student", "teacher"):
        for key, value in {"name": "vit_tiny_patch16_224", "image-size": 32, "patch-size": 8,
                           "width": 48, "depth": 2, "heads": 3}.items():  # fmt: skip
            words += [f"--{whose}.{key}", str(value)]
    assert main(words) == 0
    table = (tmp_path / "steps.csv").read_text().splitlines()
    assert table[0] == "setting,teacher,student,decoder,backward"
    assert len(table) == 1 + 5
    assert all(float(v) >= 0 for line in table[1:] for v in line.split(",")[-4:])


def test_recipe_command(capsys):
    assert main(["mae", "recipe"]) == 0
    assert "cifar10_pretrain" in capsys.readouterr().out
    assert main(["mae", "recipe", "cifar10_pretrain"]) == 0
    assert capsys.readouterr().out.strip().endswith("cifar10_pretrain.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "--out", "x"], "data.train must be a folder or zip file of images"),
        (["probe", "--init", "x", "--data.train", "y"], "data.test must be a folder"),
        (["pretrain", "--out", "x", "--mask.ratio", "1.5"], r"ratio must be in [0, 1), got 1.5"),
        (["inspect", "nowhere"], "must be the folder of a pre-training run"),
        (["export", "absent.pth", "o.pth"], "absent.pth must be a file, got nothing there"),
    ],
)
def test_wrong_use_is_one_line(words, message, capsys):
    assert main(["mae", *words]) in (1, 2)
    assert message in capsys.readouterr().err
