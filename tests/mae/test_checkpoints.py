from __future__ import annotations

import argparse
import os

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from potstill.core.errors import CheckpointError, ConfigError
from potstill.mae import (
    MaskedAutoencoder,
    MaskedToMasked,
    RandomMasking,
    Weights,
    load_weights,
    prepare_classifier,
    read_weights,
    write_folder,
    write_weights,
)


def make(make_vit, seed=0, projector="linear", **options):
    vit = make_vit(seed=seed, num_classes=0, **options)
    student = MaskedAutoencoder(vit, {"depth": 2, "width": 32})
    return MaskedToMasked(
        student, make_vit(seed=9, embed_dim=72), projector=projector, layers=[0.5, 1.0]
    )


def everything(distiller):
    return {k: v for k, v in distiller.state_dict().items()}


@pytest.mark.parametrize("form", ["dmae", "potstill"])
def test_everything_survives_bit_for_bit(make_vit, tmp_path, form):
    source, target = make(make_vit, 1), make(make_vit, 2)
    path = write_weights(source, tmp_path / f"x.{'pth' if form == 'dmae' else 'safetensors'}", form)
    weights = read_weights(path)
    assert weights.form == form
    assert load_weights(target, weights) == []
    torch.testing.assert_close(everything(target), everything(source), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["mae", "timm"])
def test_encoder_survives_bit_for_bit(make_vit, tmp_path, form):
    source, target = make(make_vit, 1), make(make_vit, 2)
    path = write_weights(source, tmp_path / "x.pth", form)
    missing = load_weights(target.student, path)
    ours, theirs = target.student.encoder.vit, source.student.encoder.vit
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    if form == "mae":
        assert missing == []
        torch.testing.assert_close(
            target.student.decoder.state_dict(), source.student.decoder.state_dict(),
            rtol=0, atol=0,
        )  # fmt: skip
    else:
        assert "decoder.mask_token" in missing


def official_names(depth=4, decoder_depth=2):
    """As the public repositories write them, listed by hand."""
    block = [
        f"{layer}.{leaf}"
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for leaf in ("weight", "bias")
    ]
    return {
        *("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"),
        *("norm.weight", "norm.bias", "mask_token", "decoder_pos_embed"),
        *(f"blocks.{i}.{name}" for i in range(depth) for name in block),
        *(f"decoder_blocks.{i}.{name}" for i in range(decoder_depth) for name in block),
        *(
            f"{part}.{leaf}"
            for part in ("decoder_embed", "decoder_norm", "decoder_pred")
            for leaf in ("weight", "bias")
        ),
    }


def test_names_are_the_official_ones(make_vit, tmp_path):
    source = make(make_vit)
    mae = torch.load(write_weights(source, tmp_path / "mae.pth", "mae"), weights_only=True)
    assert set(mae) == {"model"}
    assert set(mae["model"]) == official_names()
    assert mae["model"]["decoder_pos_embed"].shape == (1, 17, 32)
    assert mae["model"]["decoder_pred.weight"].shape == (16 * 16 * 3, 32)
    dmae = torch.load(write_weights(source, tmp_path / "dmae.pth", "dmae"), weights_only=True)
    heads = {
        f"aligned_feature_projection_heads.{i}.{leaf}"
        for i in (0, 1)
        for leaf in ("weight", "bias")
    }
    assert set(dmae["model"]) == official_names() | heads


def test_official_file_with_command_line_and_optimizer(make_vit, tmp_path):
    source = make(make_vit, 1)
    state = torch.load(write_weights(source, tmp_path / "m.pth", "mae"), weights_only=True)
    content = {
        "model": {f"module.{k}": v for k, v in state["model"].items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 99,
        "scaler": {},
        "args": argparse.Namespace(mask_ratio=0.75, output_dir="x"),
    }
    torch.save(content, tmp_path / "official.pth")
    weights = read_weights(tmp_path / "official.pth")
    assert (weights.form, weights.extra) == ("mae", {"epoch": 99})
    target = make(make_vit, 2)
    load_weights(target.student, weights)
    expected = source.student.state_dict()
    torch.testing.assert_close(target.student.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_timm_reads_what_we_write(make_vit, tmp_path, suffix):
    source = make(make_vit, 1)
    path = write_weights(source.export_student(), tmp_path / f"student.{suffix}", "timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=4, num_classes=0,
        checkpoint_path=str(path),
    )  # fmt: skip
    expected = source.student.encoder.vit.state_dict()
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_small_patch16_dinov3"])
def test_other_families_survive(make_vit, tmp_path, name):
    source = MaskedAutoencoder(make_vit(name, seed=1), {"depth": 1, "width": 32})
    target = MaskedAutoencoder(make_vit(name, seed=2), {"depth": 1, "width": 32})
    write_weights(source, tmp_path / "x.safetensors")
    assert load_weights(target, tmp_path / "x.safetensors") == []
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_fine_tuned_norm_goes_where_the_model_has_it(make_vit, tmp_path):
    token, mean = make_vit(seed=1), make_vit(seed=2, global_pool="avg")
    write_weights(mean, tmp_path / "avg.safetensors", "timm")
    assert load_weights(token, tmp_path / "avg.safetensors") == []
    torch.testing.assert_close(token.norm.weight, mean.fc_norm.weight)


def dino(state, depth=4):
    """The backbone of both models, and the head of the method."""
    backbone = {f"backbone.{name}": value for name, value in state.items()}
    other = {name: torch.zeros_like(value) for name, value in backbone.items()}
    return {
        "student": {f"module.{name}": value for name, value in other.items()},
        "teacher": backbone | {"head.mlp.0.weight": torch.zeros(2, 2)},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small"),
    }


def dinov2(state):
    """Without registers: a mask token of the encoder, and blocks in chunks."""
    renamed = {n.replace("blocks.", "blocks.0.", 1): v for n, v in state.items()}
    return {**renamed, "mask_token": torch.zeros(1, 48)}


def dinov2_registers(state):
    state = dict(state)
    registers, zero = state.pop("reg_token"), torch.zeros(1, 1, 48)
    positions = torch.cat((zero, state.pop("pos_embed")), dim=1)
    return {**state, "pos_embed": positions, "register_tokens": registers,
            "mask_token": torch.zeros(1, 48)}  # fmt: skip


def dinov3(state):
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    renamed = {}
    for name, value in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    biases = {f"blocks.{i}.attn.qkv.bias": torch.zeros(144) for i in range(4)}
    masks = {f"{name}_mask": torch.zeros(144) for name in biases}
    return {**renamed, **biases, **masks, "mask_token": torch.zeros(1, 48),
            "rope_embed.periods": torch.zeros(4)}  # fmt: skip


class Options:
    """Options of a user's module, as Lightning keeps them."""


def lightning(state):
    return {"state_dict": {f"net.vit.{k}": v for k, v in state.items()}, "callbacks": {},
            "hyper_parameters": {"options": Options()}}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "layout"),
    [("vit_tiny_patch16_224", dino), ("vit_tiny_patch16_224", dinov2),
     ("vit_small_patch14_reg4_dinov2", dinov2_registers), ("vit_small_patch16_dinov3", dinov3),
     ("vit_tiny_patch16_224", lightning)],
)  # fmt: skip
def test_files_of_others_load_by_path(make_vit, tmp_path, name, layout):
    source, target = (make_vit(name, seed=seed, num_classes=0) for seed in (1, 2))
    torch.save(layout(source.state_dict()), tmp_path / "theirs.pth")
    weights = read_weights(tmp_path / "theirs.pth")
    assert weights.decoder == {}, "a mask token alone is no decoder"
    assert load_weights(target, weights) == []
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_patches_and_positions_of_another_size_are_fitted_when_asked(make_vit, tmp_path):
    source = make_vit("vit_small_patch14_reg4_dinov2", seed=1, img_size=84)
    torch.save(dinov2_registers(source.state_dict()), tmp_path / "x.pth")
    target = make_vit("vit_small_patch14_reg4_dinov2", seed=2, img_size=64, patch_size=16)
    with pytest.raises(CheckpointError, match=r"positions for 36 patches \(6 x 6\).*\(4, 4\)"):
        load_weights(target, tmp_path / "x.pth")
    assert load_weights(target, tmp_path / "x.pth", resample=True) == []
    source.set_input_size((64, 64), (16, 16))  # timm's own resampling
    torch.testing.assert_close(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_folder_for_timm(any_vit, tmp_path, pool):
    any_vit.pretrained_cfg = {**any_vit.pretrained_cfg, "mean": (0.1, 0.2, 0.3)}
    tuned = prepare_classifier(any_vit, 7, pool=pool).eval()
    torch.nn.init.normal_(tuned.head.weight)
    model = timm.create_model(f"local-dir:{write_folder(tuned, tmp_path / 'x')}", pretrained=True)
    size = tuned.patch_embed.img_size
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), tuned(images), rtol=0, atol=0)
    assert tuple(model.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    assert tuple(model.pretrained_cfg["input_size"][1:]) == tuple(size)


def test_a_plain_class_has_no_name_for_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="made by timm.create_model"):
        write_folder(VisionTransformer(depth=1, embed_dim=12, num_heads=1), tmp_path)


def test_another_head_is_left_new(make_vit, tmp_path):
    write_weights(make_vit(num_classes=7), tmp_path / "x.pth", "timm")
    missing = load_weights(make_vit(num_classes=5), tmp_path / "x.pth")
    assert sorted(missing) == ["head.bias", "head.weight"]


def test_positions_of_another_grid(make_vit, tmp_path):
    write_weights(make_vit(img_size=96), tmp_path / "x.pth", "timm")
    with pytest.raises(CheckpointError, match=r"positions for 36 patches \(6 x 6\).*\(4, 4\).*res"):
        load_weights(make_vit(), tmp_path / "x.pth")
    target = make_vit(seed=3)
    assert load_weights(target, tmp_path / "x.pth", resample=True) == []
    assert target.pos_embed.shape == (1, 17, 48)


def test_other_patch_size_is_refused(make_vit, tmp_path):
    write_weights(make_vit(patch_size=8, img_size=32), tmp_path / "x.pth", "timm")
    with pytest.raises(
        CheckpointError, match=r"patch \(16, 16\).*patch_embed.proj.weight is \[48, 3, 8, 8\]"
    ):
        load_weights(make_vit(), tmp_path / "x.pth")


def test_other_depth_is_refused(make_vit, tmp_path):
    write_weights(make_vit(depth=3), tmp_path / "x.pth", "timm")
    with pytest.raises(CheckpointError, match=r"depth 4.*blocks\.3\..* is missing"):
        load_weights(make_vit(), tmp_path / "x.pth")
    write_weights(make_vit(depth=5), tmp_path / "x.pth", "timm")
    with pytest.raises(CheckpointError, match=r"blocks\.4\..* is unknown"):
        load_weights(make_vit(), tmp_path / "x.pth")


def test_other_decoder_is_refused(make_vit, tmp_path):
    write_weights(make(make_vit), tmp_path / "x.safetensors")
    other = MaskedAutoencoder(make_vit(), {"depth": 3, "width": 32})
    with pytest.raises(CheckpointError, match="the decoder of the checkpoint does not fit"):
        load_weights(other, tmp_path / "x.safetensors")


def test_other_number_of_projectors_is_refused(make_vit, tmp_path):
    write_weights(make(make_vit), tmp_path / "x.safetensors")
    one = MaskedToMasked(MaskedAutoencoder(make_vit()), make_vit(embed_dim=72))
    with pytest.raises(CheckpointError, match="must have 1 projectors.*got 2"):
        load_weights(one, tmp_path / "x.safetensors")


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_loading_never_runs_code(tmp_path):
    torch.save({"model": Evil(str(tmp_path / "ran"))}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be loaded without running code"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_damaged_and_foreign_files_are_refused(make_vit, tmp_path):
    good = write_weights(make(make_vit), tmp_path / "x.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut.safetensors is damaged"):
        read_weights(tmp_path / "cut.safetensors")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(tmp_path / "text.pth")
    with pytest.raises(CheckpointError, match="must be a file, got nothing there"):
        read_weights(tmp_path / "absent.pth")
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="must hold a dict of tensors"):
        read_weights(tmp_path / "list.pth")
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "linear.safetensors")
    with pytest.raises(CheckpointError, match=r"must hold a vision transformer.*bias"):
        read_weights(tmp_path / "linear.safetensors")


def test_format_and_suffix_must_fit(make_vit, tmp_path):
    with pytest.raises(ConfigError, match=r"must be one of mae, dmae.*did you mean 'dmae'"):
        write_weights(make_vit(), tmp_path / "x.pth", "dmea")
    with pytest.raises(ConfigError, match=r"must end in .pth or .pt for mae, got x.safetensors"):
        write_weights(make_vit(), tmp_path / "x.safetensors", "mae")
    with pytest.raises(ConfigError, match="projectors must be linear for dmae"):
        write_weights(make(make_vit, projector="mlp"), tmp_path / "x.pth", "dmae")
    assert not list(tmp_path.iterdir())


def test_written_weights_do_not_follow_training(make_vit):
    student = MaskedAutoencoder(make_vit())
    weights = Weights.of(student)
    before = weights.encoder["cls_token"].clone()
    nn.init.ones_(student.encoder.vit.cls_token)
    torch.testing.assert_close(weights.encoder["cls_token"], before)


def test_description_is_stored(make_vit, tmp_path):
    path = write_weights(
        make(make_vit), tmp_path / "x.safetensors", description={"teacher": "big", "ratio": 0.75}
    )
    extra = read_weights(path).extra
    assert (extra["teacher"], extra["ratio"]) == ('"big"', "0.75")
    assert "encoder.cls_token" in load_file(path)


def test_loaded_student_reconstructs_alike(make_vit, tmp_path, images):
    source, target = make(make_vit, 1).student.eval(), make(make_vit, 2).student.eval()
    load_weights(target, write_weights(source, tmp_path / "x.pth", "mae"))
    plan = RandomMasking(0.75)(3, (4, 4))
    torch.testing.assert_close(
        target.reconstruct(images, plan), source.reconstruct(images, plan), rtol=0, atol=0
    )
