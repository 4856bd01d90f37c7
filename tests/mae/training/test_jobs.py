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
    Classification,
    Data,
    Decoder,
    Encoder,
    Finetune,
    Mask,
    Pretrain,
    Teacher,
    create_encoder,
    finetune,
    load_model,
    patch_errors,
    pretrain,
    read_weights,
    recipe,
    recipes,
    statistics_of,
    write_folder,
    write_weights,
)
from potstill.mae.training.jobs import Finetuning, Pretraining, make_distiller, make_masking

TINY = Encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, width=48, depth=2, heads=3)


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
    loaded = load_model(str(tmp_path / "f"))  # as --init of probe, finetune and export
    assert loaded.model.patch_embed.img_size == (32, 32)
    again = timm.create_model(f"local-dir:{tmp_path / 'f' / 'classifier'}", pretrained=True)
    assert again.num_classes == 2


def test_a_teacher_with_patches_and_a_grid_of_its_own(configured, tmp_path, caplog):
    """14 to 16: the teacher's positions go to the student's grid, and it sees smaller images."""
    name = "vit_small_patch14_dinov2"
    own = Encoder(name, image_size=84, patch_size=14, width=48, depth=2, heads=3)
    write_weights(create_encoder(own), tmp_path / "t.pth", "timm")
    config = configured(tmp_path / "o", teacher=Teacher(str(tmp_path / "t.pth"), own))
    distiller, loaded = make_distiller(config)
    assert distiller.teacher.model.grid == distiller.student.encoder.grid == (4, 4)
    assert loaded.model.patch_embed.img_size == (56, 56)
    assert "teacher has (6, 6) patches" in caplog.text
    images = torch.randn(2, 3, 32, 32)
    assert distiller.teacher_input(images).shape == (2, 3, 56, 56)
    assert torch.isfinite(distiller(images, 0).total)
    assert patch_errors(distiller, images).shape == (2, 16)


def test_a_student_may_begin_with_weights(run, configured, tmp_path):
    trained = load_model(str(run)).model
    student = make_distiller(configured(tmp_path, init=str(run)))[0].student
    begun = student.encoder.vit
    torch.testing.assert_close(begun.state_dict(), trained.state_dict(), rtol=0, atol=0)
    assert begun.pos_embed.requires_grad
    student.save_pretrained(tmp_path / "s")
    again = load_model(str(tmp_path / "s")).model.state_dict()
    torch.testing.assert_close(again, trained.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("channels", "size"), [(1, (32, 16)), (4, (16, 32))])
def test_rectangles_and_other_channels(run, pictures, tmp_path, channels, size):
    """Pre-training, fine-tuning and its test, from words of a command."""
    height, width = size
    model = (f"--X.name vit_tiny_patch16_224 --X.image-size {width} --X.height {height} "
             f"--X.patch-size 8 --X.width 24 --X.depth 1 --X.heads 3 --X.channels {channels}"
             )  # fmt: skip
    if channels == 4:
        model += " --X.mean 0.5 0.5 0.5 0.5 --X.std 0.5 0.5 0.5 0.5"
    data = f"--data.train {pictures / 'train'} --steps 1 --batch 4 --device cpu"
    words = f"mae pretrain --out {tmp_path / 'p'} {model.replace('X', 'student')} {data}"
    assert main(f"{words} --decoder.depth 1 --decoder.width 24 --decoder.heads 3".split()) == 0
    words = (
        f"mae finetune --out {tmp_path / 'f'} --init {tmp_path / 'p'} {data} --mixup 0 --cutmix 0"
    )
    assert main(f"{words} --data.test {pictures / 'test'} --augment light".split()) == 0
    vit = load_model(str(tmp_path / "f")).model
    assert (vit.patch_embed.proj.in_channels, tuple(vit.patch_embed.img_size)) == (channels, size)
    assert len(statistics_of(vit)[0]) == channels


def test_statistics_of_other_channels_are_asked_for():
    assert len(statistics_of(create_encoder(Encoder(TINY.name, depth=1, channels=1)))[0]) == 1
    with pytest.raises(ConfigError, match="mean and std must be 4 numbers, one per channel, got 3"):
        statistics_of(create_encoder(Encoder(TINY.name, depth=1, channels=4)))


def test_finetuning_with_a_teacher_and_the_best_of_its_epochs(run, pictures, tmp_path):
    first = tmp_path / "first"
    assert main(tuning(run, pictures, first)) == 0
    learned = Finetune(
        tmp_path / "second", init=str(run), teacher=Teacher(str(first), bf16=True), kd=0.75,
        data=Data(str(pictures / "train"), validation=str(pictures / "test"), resident=True),
        training=Training(epochs=2, batch=8, optimizer="adamw", device="cpu"), mixup=0, cutmix=0,
    )  # fmt: skip
    finetune(learned, progress=False)
    rows = losses(tmp_path / "second")
    for row in rows:
        assert row["loss"] == pytest.approx(0.25 * row["task"] + 0.75 * row["kd"], rel=1e-5)
    assert [row["step"] for row in rows if "score" in row] == [1, 3], "after each epoch"


def test_a_teacher_of_other_classes_is_refused(run, pictures, tmp_path):
    """A head and the folders are compared before training: their number, and names if known."""
    vit = create_encoder(TINY, 3)
    data = Data(str(pictures / "train"))
    for classes, message in ((3, "head of 2 classes like the images, got 3"),
                             (2, "blue, red, got cat, dog")):  # fmt: skip
        vit.reset_classifier(classes)
        write_folder(vit, tmp_path / "t", ("cat", "dog", "owl")[:classes])
        config = Finetune(
            tmp_path / "o", encoder=TINY, teacher=Teacher(str(tmp_path / "t")), data=data,
            training=Training(steps=1, batch=8, optimizer="adamw", device="cpu"),
        )  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            finetune(config, progress=False)
    assert not (tmp_path / "o" / "config.yaml").exists()
    with pytest.raises(ConfigError, match="head of 5 classes like the images, got 2"):
        Classification(create_encoder(TINY, 5), create_encoder(TINY, 2))


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


@pytest.mark.dist
def test_two_processes_do_what_one_does(run, pictures, teacher, on_two_processes):
    """With masks and dropped paths of the images, wherever these are; mixup pairs a batch."""
    words = ["--epochs", "2", "--batch", "{share:8}", "--data.train", str(pictures / "train")]
    student = ["name=vit_tiny_patch16_224", "image-size=32", "patch-size=8", "width=48", "depth=2"]
    shape = [word for option in student for word in f"--student.{option}".split("=")]
    small = ["--student.heads", "3", "--decoder.depth", "1", "--decoder.width", "32"]
    plain = ["--mixup", "0", "--cutmix", "0", "--drop-path", "0.5"]
    on_two_processes({
        "pretrain": ["mae", "pretrain", *shape, *small, "--teacher.source", str(teacher), *words],
        "finetune": ["mae", "finetune", "--init", str(run), *plain, *words],
    })  # fmt: skip
