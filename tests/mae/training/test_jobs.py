"""The jobs on a dozen generated images: what they leave, continue and refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch

from potstill.core import Training
from potstill.core.command import load
from potstill.core.command.cli import main
from potstill.core.errors import ConfigError, DataError
from potstill.mae import (
    Align,
    Data,
    Decoder,
    Finetune,
    Mask,
    Pretrain,
    Teacher,
    pretrain,
    read_weights,
    recipe,
    recipes,
)
from potstill.mae.training.jobs import Finetuning, Pretraining, make_distiller, make_masking


def tuning(run, pictures, out):
    """Words of a small fine-tuning."""
    return ["mae", "finetune", "--out", str(out), "--init", str(run), "--device", "cpu",
            "--data.train", str(pictures / "train"), "--data.test", str(pictures / "test"),
            "--data.resident", "--epochs", "12", "--batch", "8", "--lr-per-256", "0.05",
            "--mixup", "0", "--cutmix", "0", "--drop-path", "0"]  # fmt: skip


def test_pretraining_leaves_everything_behind(run, teacher):
    present = {path.name for path in run.iterdir()}
    assert {"config.yaml", "history.jsonl", "curves.png", "student", "encoder.safetensors",
            "weights.safetensors", "reconstruction.png", "result.json"} <= present  # fmt: skip
    result = json.loads((run / "result.json").read_text())
    assert (result["steps"], result["teacher"]) == (4, str(teacher))
    weights = read_weights(run / "weights.safetensors")
    assert weights.decoder
    assert len(weights.projectors) == 1
    config = load(Pretrain, run / "config.yaml")
    model = timm.create_model(
        config.student.name, **config.student.options(), num_classes=0,
        checkpoint_path=str(run / "encoder.safetensors"),
    )  # fmt: skip
    torch.testing.assert_close(model.state_dict(), weights.encoder, rtol=0, atol=0)


def test_same_configuration_continues_and_another_is_refused(run, configured):
    before = (run / "history.jsonl").read_text()
    pretrain(configured(run), progress=False)
    assert (run / "history.jsonl").read_text() == before
    with pytest.raises(ConfigError, match=r"another mask.ratio \(0.75, now 0.5\)"):
        pretrain(configured(run, mask=Mask(ratio=0.5)), progress=False)


def test_decoded_images_with_workers(configured, pictures, tmp_path):
    config = configured(
        tmp_path / "x", data=Data(str(pictures / "train")), decoder=Decoder(depth=0)
    )
    config = replace(config, training=replace(config.training, workers=1))
    summary = pretrain(config, progress=False)
    assert summary["steps"] == 4
    assert "pixels" not in summary
    assert not (tmp_path / "x" / "reconstruction.png").exists()


def test_finetune_from_the_run(run, pictures, tmp_path, capsys):
    assert main(tuning(run, pictures, tmp_path / "f")) == 0
    result = json.loads((tmp_path / "f" / "result.json").read_text())
    assert result["classes"] == ["blue", "red"]
    assert result["top1"] == 100, "red and blue are not hard to tell"
    assert "top1" in capsys.readouterr().out
    assert (tmp_path / "f" / "classifier.safetensors").exists()


def losses(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize(
    ("verb", "weights", "option"),
    [("pretrain", "weights.safetensors", ["--mask.ratio", "0.5"]),
     ("finetune", "classifier.safetensors", ["--smoothing", "0.2"])],
)  # fmt: skip
def test_the_configuration_of_a_run_repeats_it(
    run, pictures, tmp_path, capsys, verb, weights, option
):
    if verb == "finetune":
        words, run = tuning(run, pictures, tmp_path / "first"), tmp_path / "first"
        assert main(words) == 0
    config = ["mae", verb, "--config", str(run / "config.yaml")]
    again = tmp_path / "again"
    assert main([*config, "--out", str(again)]) == 0
    assert losses(again) == losses(run)
    before, after = (read_weights(folder / weights).encoder for folder in (run, again))
    torch.testing.assert_close(after, before, rtol=0, atol=0)

    history = (again / "history.jsonl").read_bytes()
    assert main([*config, "--out", str(again), "--workers", "1"]) == 0, "workers may differ"
    assert (again / "history.jsonl").read_bytes() == history
    capsys.readouterr()
    assert main([*config, "--out", str(again), *option]) != 0
    assert f"another {option[0][2:]} (" in capsys.readouterr().err


def test_pretraining_is_told_its_folder_by_position(configured, pictures, tmp_path):
    words = ["mae", "pretrain", str(tmp_path / "p"), "--steps", "1", "--lr", "0.25", "--batch", "8",
             "--device", "cpu", "--data.train", str(pictures / "train"), "--data.resident",
             "--warmup", "0", "--student.name", "vit_tiny_patch16_224"]  # fmt: skip
    for name in ("image_size", "patch_size", "width", "depth", "heads"):
        value = getattr(configured(tmp_path).student, name)
        words += [f"--student.{name.replace('_', '-')}", str(value)]
    assert main([*words, "--decoder.depth", "1", "--decoder.width", "32"]) == 0
    assert [row["lr"] for row in losses(tmp_path / "p")] == [0.25], "a rate that is given is used"


RATES = {  # what the recipes gave before their options moved: in one process, and in eight
    "align_vit_small": (3e-4, 2.4e-3),
    "cifar10_finetune": (2e-3, 1.6e-2),
    "cifar10_pretrain": (2e-3, 1.6e-2),
    "dmae_vit_base": (3e-4, 2.4e-3),  # as published, in eight
    "finetune": (2.5e-4, 2e-3),
    "light_vit_small": (1.5e-4, 1.2e-3),
}


@pytest.mark.parametrize("name", recipes())
def test_recipes_have_the_rates_that_they_had(name, pictures):
    kind, job = (Finetune, Finetuning) if "finetune" in name else (Pretrain, Pretraining)
    config = replace(load(kind, recipe(name)), data=Data(str(pictures / "train")))
    ready = job(config)
    for world, expected in zip((1, 8), RATES[name], strict=True):
        ready.engine = SimpleNamespace(world=world)
        assert ready.lr() == pytest.approx(expected)


def test_the_rate_follows_the_rule_and_the_batch(run):
    training = load(Pretrain, run / "config.yaml").training
    assert training.lr is None
    assert max(row["lr"] for row in losses(run)) == pytest.approx(1.5e-4 * training.batch / 256)


def test_strong_augmentation_and_mixing_run(run, pictures, tmp_path):
    words = ["mae", "finetune", "--out", str(tmp_path / "f"), "--init", str(run), "--device", "cpu",
             "--data.train", str(pictures / "train"), "--epochs", "1", "--batch", "8"]  # fmt: skip
    assert main(words) == 0


def test_missing_images_are_named(configured, tmp_path):
    with pytest.raises(DataError, match="absent must be a folder or a .zip file"):
        pretrain(configured(tmp_path / "o", data=Data(str(tmp_path / "absent"))), progress=False)
    assert not (tmp_path / "o").exists()


def test_another_optimizer_is_refused(configured, tmp_path):
    config = configured(tmp_path / "o", training=Training(steps=1, batch=8, optimizer="sgd"))
    with pytest.raises(ConfigError, match=r"optimizer must be .*'sgd'"):
        pretrain(config, progress=False)


def test_configuration_reaches_the_distiller(configured, teacher, tmp_path):
    config = configured(
        tmp_path,
        mask=Mask("block", 0.5, side=3), align=Align(pairs=("0:0",), weight=0.3, distance="cosine"),
        teacher=Teacher(str(teacher), bf16=True, prune=True),
    )  # fmt: skip
    distiller, loaded = make_distiller(config)
    assert distiller.pairs == {"align/0": (0, 0)}
    assert distiller.objective.at(0) == {"pixels": 1.0, "align/0": 0.3}
    assert distiller.objective.module("align/0").criterion.kind == "cosine"
    assert next(distiller.teacher.model.parameters()).dtype == torch.bfloat16
    assert distiller.teacher.model.depth == 1
    whole, _ = make_distiller(replace(config, teacher=Teacher(str(teacher), prune=False)))
    assert whole.teacher.model.depth == 2
    assert next(whole.teacher.model.parameters()).dtype == torch.float32
    assert repr(distiller.masking) == "BlockMasking(ratio=0.5, side=3)"
    assert loaded.origin == str(teacher)
    assert repr(make_masking(Mask("grid", 0.5))) == "GridMasking(ratio=0.5)"
