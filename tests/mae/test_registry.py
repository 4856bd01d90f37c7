from __future__ import annotations

import pytest
import timm
import torch

import potstill.mae.registry  # noqa: F401  (registers)
from potstill.core.errors import NonFiniteError
from potstill.mae import MaskedAutoencoder, MaskedDistillTask, MaskedToMasked, RandomMasking


def test_create_model_knows_the_students():
    names = timm.list_models("potstill_mae*")
    assert "potstill_mae_small_patch16_224" in names
    student = timm.create_model("potstill_mae_tiny_patch16_224", img_size=64, depth=2)
    assert isinstance(student, MaskedAutoencoder)
    assert len(student.decoder.blocks) == 2
    painted = student(torch.zeros(1, 3, 64, 64), RandomMasking(0.75)(1, (4, 4)))
    assert painted.shape == (1, 12, 768)


def test_any_encoder_and_decoder():
    student = timm.create_model(
        "potstill_mae", encoder="deit3_small_patch16_224", depth=1, decoder_depth=0
    )
    assert student.decoder is None
    assert student.encoder.width == 384
    light = timm.create_model("potstill_mae", depth=1, decoder_width=64, decoder_share=0.5)
    assert light.decoder.share == 0.5


def test_create_model_reads_a_checkpoint(tmp_path):
    options = {"img_size": 64, "depth": 1, "decoder_width": 32}
    student = timm.create_model("potstill_mae_tiny_patch16_224", **options)
    torch.save(student.state_dict(), tmp_path / "s.pth")
    again = timm.create_model(
        "potstill_mae_tiny_patch16_224", checkpoint_path=str(tmp_path / "s.pth"), **options
    )
    torch.testing.assert_close(again.state_dict(), student.state_dict(), rtol=0, atol=0)


def make_task(make_vit):
    student = MaskedAutoencoder(make_vit(depth=2), {"depth": 1, "width": 32})
    return MaskedDistillTask(MaskedToMasked(student, make_vit(depth=2, embed_dim=72, seed=1)))


def test_task_follows_timms_contract(make_vit, images):
    task = make_task(make_vit)
    result = task(images, torch.tensor([0, 1, 2]))
    assert set(result) == {"loss", "pixels", "align/1"}
    result["loss"].backward()
    assert task.get_eval_model() is task.trainable_module.student.encoder.vit
    saved = task.get_checkpoint_state()["state_dict"]
    assert set(saved) == set(task.get_eval_model().state_dict())
    task.setup_ema(decay=0.9)
    task.update_ema()
    assert task.get_eval_model(ema=True) is not task.get_eval_model()
    assert not [name for name, _ in task.named_parameters() if "teacher" in name]


def test_task_catches_a_bad_term_after_the_pixels(make_vit, images):
    task = make_task(make_vit)
    projector = task.trainable_module.objective.module("align/1").projector[0]
    torch.nn.init.constant_(projector.bias, float("nan"))
    with pytest.raises(NonFiniteError, match=r"at step 0 \(pixels=[\d.]+, align/1=nan\)"):
        task(images)


def test_the_device_is_waited_for_only_now_and_then(make_vit, monkeypatch):
    """NaN is found at the next look, and named by the step that made it."""
    student = MaskedAutoencoder(make_vit(depth=2), {"depth": 1, "width": 32})
    task = MaskedDistillTask(MaskedToMasked(student), check_every=3).train()
    looks = []
    for name in ("__bool__", "item", "tolist", "__float__", "__int__"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda t, own=own, n=name: looks.append(n) or own(t)
        )
    images = torch.randn(2, 3, 64, 64)
    for _ in range(6):
        task(images)
    assert looks == ["tolist"] * 2
    task(images * torch.nan), task(images)
    with pytest.raises(NonFiniteError, match=r"loss is nan at step 6 \(pixels=nan\)"):
        task(images)
