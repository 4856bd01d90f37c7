from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from potstill.core.errors import CheckpointError, ConfigError, DataError
from potstill.core.images import IMAGENET
from potstill.core.store.data import locate
from potstill.core.testing import requires_data
from potstill.mae import (
    Decoder,
    Encoder,
    MaskedAutoencoder,
    RandomMasking,
    Student,
    create_encoder,
    load_model,
    statistics_of,
    write_folder,
    write_weights,
)
from potstill.mae.models.students import given, initial

TINY = Encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, width=48, depth=2, heads=3)
GRAY = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_encoder_has_what_was_asked_for():
    vit = create_encoder(TINY)
    assert vit.patch_embed.grid_size == (4, 4)
    assert (vit.embed_dim, len(vit.blocks), vit.num_classes) == (48, 2, 0)
    assert statistics_of(vit) == (GRAY[0], (0.5, 0.5, 0.5))
    own = create_encoder(Encoder(TINY.name, depth=1, mean=GRAY[0], std=GRAY[1]))
    assert statistics_of(own) == GRAY
    assert statistics_of(torch.nn.Linear(1, 1)) == IMAGENET


def test_unknown_name_suggests_another():
    with pytest.raises(DataError, match="no model 'vit_smal_patch16_224'; did you mean 'vit_small"):
        create_encoder(Encoder("vit_smal_patch16_224"))
    with pytest.raises(DataError, match=r"list_models\('vit\*'\)"):
        load_model("qqqqqq")


def test_student_survives_a_folder(tmp_path):
    torch.manual_seed(1)
    student = Student(TINY, Decoder(depth=1, width=32, share=0.5)).eval()
    student.save_pretrained(tmp_path / "s", teacher="big")
    again = Student.from_pretrained(tmp_path / "s")
    torch.testing.assert_close(again.state_dict(), student.state_dict(), rtol=0, atol=0)
    images, plan = torch.randn(2, 3, 32, 32), RandomMasking(0.75)(2, (4, 4))
    torch.testing.assert_close(again(images, plan), student(images, plan), rtol=0, atol=0)
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert config["encoder"]["name"] == TINY.name
    loaded = load_model(str(tmp_path / "s"))
    vit = student.encoder.vit.state_dict()
    torch.testing.assert_close(loaded.model.state_dict(), vit, rtol=0, atol=0)


def test_folder_of_another_architecture_is_refused(tmp_path):
    Student(TINY, Decoder(depth=0)).save_pretrained(tmp_path / "s")
    path = tmp_path / "s" / "config.json"
    path.write_text(path.read_text().replace('"depth": 2', '"depth": 1'))
    with pytest.raises(CheckpointError):
        Student.from_pretrained(tmp_path / "s")
    path.write_text("[" * 20_000)
    with pytest.raises(DataError, match=r"config\.json must be the configuration of a model"):
        load_model(str(tmp_path / "s"))


def test_file_with_given_architecture(tmp_path):
    vit = create_encoder(TINY)
    path = write_weights(vit, tmp_path / "x.safetensors", "timm")
    loaded = load_model(str(path), TINY)
    torch.testing.assert_close(loaded.model.state_dict(), vit.state_dict(), rtol=0, atol=0)
    with pytest.raises(DataError, match="architecture of .* must be known, got neither an encoder"):
        load_model(str(path))


def test_file_that_says_its_architecture(tmp_path):
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    vit = VisionTransformer(**kwargs, num_classes=10)
    save_file(vit.state_dict(), tmp_path / "t.safetensors")
    about = {"kwargs": {**kwargs, "num_classes": 10}, "mean": GRAY[0], "std": GRAY[1]}
    (tmp_path / "t.json").write_text(json.dumps(about))
    loaded = load_model(str(tmp_path / "t.safetensors"))
    assert loaded.statistics == GRAY
    assert loaded.origin.endswith("t.safetensors")
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        loaded.model.eval().forward_features(images), vit.eval().forward_features(images)
    )


def test_normalisation_beside_a_file_stays_with_the_model(tmp_path):
    """`initial` is where probe and finetune get theirs, and `statistics_of` asks the model."""
    vit = create_encoder(TINY)
    save_file(vit.state_dict(), tmp_path / "t.safetensors")
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    about = {"kwargs": kwargs, "mean": GRAY[0], "std": GRAY[1]}
    (tmp_path / "t.json").write_text(json.dumps(about))
    model = initial(str(tmp_path / "t.safetensors"), Encoder())
    assert statistics_of(model) == GRAY
    again = load_model(f"local-dir:{write_folder(model, tmp_path / 'folder')}")
    assert again.statistics == statistics_of(again.model) == GRAY
    by_path = load_model(str(tmp_path / "folder"))
    assert (by_path.statistics, by_path.origin) == (GRAY, str(tmp_path / "folder"))
    (tmp_path / "t.json").write_text(json.dumps({"kwargs": kwargs, "mean": [0.5] * 4}))
    with pytest.raises(ConfigError, match=r"t\.json: .* must be 3 numbers"):
        load_model(str(tmp_path / "t.safetensors"))


def test_what_is_said_beside_a_source_is_used(tmp_path, caplog):
    Student(TINY, Decoder(depth=0), fixed_positions=False).save_pretrained(tmp_path / "s")
    wider = load_model(str(tmp_path / "s"), Encoder(image_size=64, mean=GRAY[0], std=GRAY[1]))
    assert wider.model.patch_embed.grid_size == (8, 8)
    assert wider.statistics == GRAY
    assert "positions for 16 patches (4 x 4) are interpolated to (8, 8)" in caplog.text
    with pytest.raises(CheckpointError, match="width 96"):
        load_model(str(tmp_path / "s"), Encoder(width=96))
    with pytest.raises(ConfigError, match=r"encoder.name must be left out.*'vit_base_patch16_224'"):
        load_model("vit_tiny_patch16_224", Encoder("vit_base_patch16_224"), pretrained=False)


def test_names_of_the_hub_reach_timm(monkeypatch):
    asked = []

    def hub(name, **options):
        asked.append(name)
        return timm.create_model("vit_tiny_patch16_224", depth=1)

    monkeypatch.setattr("potstill.core.adapters.teachers.importlib.import_module",
                        lambda name: SimpleNamespace(create_model=hub))  # fmt: skip
    load_model("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k")
    assert asked == ["hf-hub:timm/vit_tiny_patch16_224.augreg_in21k"]


def test_missing_path_is_not_taken_for_a_name():
    with pytest.raises(DataError, match="absent/model.pth must exist, got nothing there nor below"):
        load_model("absent/model.pth")


def test_fresh_weights_are_warned_about(caplog):
    loaded = load_model("vit_tiny_patch16_224", Encoder(TINY.name, depth=1), pretrained=False)
    assert "has fresh weights and teaches nothing" in caplog.text
    assert loaded.origin == "vit_tiny_patch16_224, fresh weights"


def test_licence_is_told(monkeypatch, caplog):
    """Without network: timm's own description of the MAE weights."""
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        return create(name, pretrained=False, **options)

    monkeypatch.setattr("timm.create_model", offline)
    loaded = load_model("vit_base_patch16_224.mae", Encoder(depth=1))
    assert loaded.licence == "cc-by-nc-4.0"
    assert "not for commercial use; augreg and DeiT teachers are Apache-2.0" in caplog.text
    caplog.clear()
    free = load_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", Encoder(depth=1))
    assert (free.licence, caplog.text) == ("apache-2.0", "")


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def broken(name, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", broken)
    with pytest.raises(
        DataError, match=r"must be downloadable, got OSError: no route.*give the fi"
    ):
        load_model("vit_base_patch16_224.mae")


@requires_data("vision/tiny_vit_cifar10.safetensors", "vision/tiny_vit_cifar10.json")
def test_the_small_teacher_loads():
    loaded = load_model("vision/tiny_vit_cifar10.safetensors")
    assert loaded.model.embed_dim == 96
    assert loaded.statistics[0] == (0.4914, 0.4822, 0.4465)
    assert locate("vision/tiny_vit_cifar10.json").exists()


def test_negative_options_are_refused():
    with pytest.raises(ConfigError, match="width must be at least 0"):
        Encoder(width=-3)


def test_an_architecture_that_is_named_is_not_left_to_the_source():
    assert given(Encoder()) is None
    named = Encoder("vit_small_patch16_224")
    assert given(named) is named
    assert create_encoder(Encoder(depth=1)).embed_dim == 384


def test_a_model_that_is_masked_stays_as_it_was():
    vit = create_encoder(Encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=1))
    before = copy.deepcopy(vit.state_dict())
    flags = [p.requires_grad for p in vit.parameters()]
    asked = MaskedAutoencoder(vit, {"depth": 1, "width": 32}, fixed_positions=True)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert [p.requires_grad for p in vit.parameters()] == flags
    assert not torch.equal(asked.encoder.vit.pos_embed, vit.pos_embed)
    kept = MaskedAutoencoder(vit).encoder.vit.pos_embed
    assert torch.equal(kept, vit.pos_embed)
    assert kept.requires_grad
