"""The command line's jobs on a dozen generated images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from potstill.core.command.cli import main
from potstill.core.errors import ConfigError, DataError
from potstill.mae import Encoder, Pretrain, read_weights
from potstill.mae.config import Align, Data, Decoder, Mask, Optim, Teacher
from potstill.mae.workflow import make_distiller, make_masking, pretrain

TINY = Encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, width=48, depth=2, heads=3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 6)):
        for name, tint in (("red", (255, 60, 60)), ("blue", (60, 60, 255))):
            (folder / part / name).mkdir(parents=True)
            for index in range(count // 2):
                noise = rng.integers(0, 60, (32, 32, 3)) + np.array(tint) - 60
                pixels = np.clip(noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    from potstill.mae import Student

    folder = tmp_path_factory.mktemp("teacher") / "t"
    torch.manual_seed(3)
    bigger = Encoder(TINY.name, image_size=32, patch_size=8, width=72, depth=2, heads=3)
    Student(bigger, Decoder(depth=0), fixed_positions=False).save_pretrained(folder)
    return folder


def options(pictures, learned_from, out, **more):
    settings = {
        "out": out, "student": TINY, "decoder": Decoder(depth=1, width=32),
        "teacher": Teacher(str(learned_from)), "data": Data(str(pictures / "train"), resident=True),
        "optim": Optim(epochs=2, batch_size=8), "device": "cpu",
    }  # fmt: skip
    return Pretrain(**{**settings, **more})


@pytest.fixture(scope="module")
def run(pictures, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pre"
    pretrain(options(pictures, teacher, out), progress=False)
    return out


def test_pretraining_leaves_everything_behind(run, teacher):
    present = {path.name for path in run.iterdir()}
    assert {"config.yaml", "history.jsonl", "curves.png", "student", "encoder.safetensors",
            "weights.safetensors", "reconstruction.png", "result.json"} <= present  # fmt: skip
    result = json.loads((run / "result.json").read_text())
    assert (result["steps"], result["teacher"]) == (4, str(teacher))
    weights = read_weights(run / "weights.safetensors")
    assert weights.decoder
    assert len(weights.projectors) == 1
    model = timm.create_model(
        TINY.name, **TINY.options(), num_classes=0,
        checkpoint_path=str(run / "encoder.safetensors"),
    )  # fmt: skip
    torch.testing.assert_close(model.state_dict(), weights.encoder, rtol=0, atol=0)


def test_same_configuration_continues_and_another_is_refused(run, pictures, teacher):
    before = (run / "history.jsonl").read_text()
    pretrain(options(pictures, teacher, run), progress=False)
    assert (run / "history.jsonl").read_text() == before
    with pytest.raises(ConfigError, match=r"another mask.ratio \(0.75, now 0.5\)"):
        pretrain(options(pictures, teacher, run, mask=Mask(ratio=0.5)), progress=False)


def test_decoded_images_with_workers(pictures, teacher, tmp_path):
    data = Data(str(pictures / "train"), workers=1)
    config = options(pictures, teacher, tmp_path / "x", data=data, decoder=Decoder(depth=0))
    summary = pretrain(config, progress=False)
    assert summary["steps"] == 4
    assert "pixels" not in summary
    assert not (tmp_path / "x" / "reconstruction.png").exists()


def test_finetune_from_the_run(run, pictures, tmp_path, capsys):
    words = ["mae", "finetune", "--out", str(tmp_path / "f"), "--init", str(run), "--device", "cpu",
             "--data.train", str(pictures / "train"), "--data.test", str(pictures / "test"),
             "--data.resident", "--optim.epochs", "12", "--optim.batch-size", "8",
             "--optim.base-lr", "0.05", "--mixup", "0", "--cutmix", "0",
             "--drop-path", "0"]  # fmt: skip
    assert main(words) == 0
    result = json.loads((tmp_path / "f" / "result.json").read_text())
    assert result["classes"] == ["blue", "red"]
    assert result["top1"] == 100, "red and blue are not hard to tell"
    assert "top1" in capsys.readouterr().out
    assert (tmp_path / "f" / "classifier.safetensors").exists()


def test_strong_augmentation_and_mixing_run(run, pictures, tmp_path):
    words = ["mae", "finetune", "--out", str(tmp_path / "f"), "--init", str(run), "--device", "cpu",
             "--data.train", str(pictures / "train"), "--optim.epochs", "1",
             "--optim.batch-size", "8"]  # fmt: skip
    assert main(words) == 0


def test_probe(run, pictures, capsys):
    words = ["mae", "probe", "--init", str(run), "--device", "cpu", "--neighbors", "3",
             "--epochs", "20", "--data.train", str(pictures / "train"),
             "--data.test", str(pictures / "test")]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "knn" in out
    assert "100" in out


@pytest.mark.parametrize(
    ("form", "name"),
    [("timm", "t.safetensors"), ("mae", "m.pth"), ("dmae", "d.pth"), ("potstill", "p.safetensors"),
     ("onnx", "s.onnx"), ("pt2", "s.pt2")],
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


def test_bench_times_your_models(tmp_path, capsys):
    words = ["mae", "bench", "--ratios", "0.75", "--repeats", "1", "--batch-size", "2",
             "--out", str(tmp_path / "steps.png")]  # fmt: skip
    for whose in ("student", "teacher"):
        for key, value in {"name": TINY.name, "image-size": 32, "patch-size": 8, "width": 48,
                           "depth": 2, "heads": 3}.items():  # fmt: skip
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


def test_missing_images_are_named(teacher, tmp_path):
    data = Data(str(tmp_path / "absent"))
    config = Pretrain(out=tmp_path / "o", student=TINY, teacher=Teacher(str(teacher)), data=data,
                      device="cpu")  # fmt: skip
    with pytest.raises(DataError, match="absent must be a folder or a .zip file"):
        pretrain(config, progress=False)


def test_configuration_reaches_the_distiller(pictures, teacher, tmp_path):
    config = options(
        pictures, teacher, tmp_path,
        mask=Mask("block", 0.5, side=3), align=Align(pairs=("0:1",), weight=0.3, distance="cosine"),
        teacher=Teacher(str(teacher), bf16=True, prune=False),
    )  # fmt: skip
    distiller, loaded = make_distiller(config)
    assert distiller.pairs == {"align/0": (0, 1)}
    assert distiller.objective.at(0) == {"pixels": 1.0, "align/0": 0.3}
    assert distiller.objective.module("align/0").criterion.kind == "cosine"
    assert next(distiller.teacher.model.parameters()).dtype == torch.bfloat16
    assert repr(distiller.masking) == "BlockMasking(ratio=0.5, side=3)"
    assert loaded.origin == str(teacher)
    assert repr(make_masking(Mask("grid", 0.5))) == "GridMasking(ratio=0.5)"
