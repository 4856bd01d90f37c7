from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from potstill.core import fit
from potstill.core.errors import ConfigError
from potstill.mae import Classification, adamw, layer_decayed, prepare_classifier, top1


def batch(size=4, classes=5):
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 64, 64, generator=rng)
    return images, torch.randint(classes, (size,), generator=rng)


def test_classifier_pools_patches_with_a_fresh_norm(make_vit, images):
    vit = make_vit(num_classes=0)
    nn.init.constant_(vit.norm.weight, 3.0)
    model = prepare_classifier(vit, 7, drop_path=0.3).eval()
    assert isinstance(model.norm, nn.Identity)
    torch.testing.assert_close(model.fc_norm.weight, torch.ones(48))
    assert model(images).shape == (3, 7)
    assert model.head.weight.std() < 1e-4
    rates = [b.drop_path1.drop_prob if isinstance(b.drop_path1, DropPath) else 0.0
             for b in model.blocks]  # fmt: skip
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    tokens = model.forward_features(images)
    expected = model.head(model.fc_norm(tokens[:, 1:].mean(1)))
    torch.testing.assert_close(model(images), expected)


def test_distilled_and_rotary_models_become_classifiers(make_vit, images):
    for name in ("deit_tiny_distilled_patch16_224", "vit_small_patch16_dinov3"):
        assert prepare_classifier(make_vit(name), 7)(images).shape == (3, 7)
    kept = prepare_classifier(make_vit(), 7, pool="token")
    assert not isinstance(kept.norm, nn.Identity)


def test_one_class_is_refused(make_vit):
    with pytest.raises(ConfigError, match="num_classes must be at least 2, got 1"):
        prepare_classifier(make_vit(), 1)


def test_learning_rate_falls_towards_the_input(make_vit):
    vit = make_vit()
    distiller = Classification(vit)
    optimizer = layer_decayed(vit, 0.5)(list(distiller.named_parameters()), lr=0.1)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    # stem, 4 blocks (the norm belongs to the last group), head
    stem, head = rate[id(vit.patch_embed.proj.weight)], rate[id(vit.head.weight)]
    blocks = [rate[id(block.attn.qkv.weight)] for block in vit.blocks]
    assert head == pytest.approx(0.1)
    assert [b / a for a, b in zip([stem, *blocks], [*blocks, head], strict=True)] == [2.0] * 5
    assert optimizer.param_groups[0]["lr"] == head
    with pytest.raises(ConfigError, match=r"decay must be in \(0, 1\], got 1.5"):
        layer_decayed(vit, 1.5)


def test_vectors_have_no_decay(make_vit):
    vit = make_vit()
    for make in (adamw(0.05), layer_decayed(vit, 0.75, 0.05)):
        optimizer = make([("student." + n, p) for n, p in vit.named_parameters()], lr=0.1)
        decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert decay[id(vit.cls_token)] == 0
        assert decay[id(vit.blocks[0].norm1.weight)] == 0
        assert decay[id(vit.blocks[0].attn.qkv.bias)] == 0
        assert decay[id(vit.blocks[0].attn.qkv.weight)] == 0.05
        assert len(decay) == len(list(vit.parameters()))


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_few_steps_lower_the_loss(make_vit, mixing):
    distiller = Classification(make_vit(depth=2), **mixing)
    history = fit(
        distiller, [batch(8)], steps=20, lr=1e-3,
        optimizer=layer_decayed(distiller.student), progress=False,
    )  # fmt: skip
    first, last = (sum(r["task"] for r in history[s]) / 5 for s in (slice(5), slice(-5, None)))
    assert last < first
    if not mixing:
        assert top1(distiller.student, *batch(8)) > 50


def test_mixing_is_reproducible_and_leaves_the_batch_alone(make_vit):
    data = batch(8)
    before = data[0].clone()
    runs = [
        fit(Classification(make_vit(depth=1), mixup=0.8), [data], steps=3, progress=False)
        for _ in range(2)
    ]
    assert [r["loss"] for r in runs[0]] == [r["loss"] for r in runs[1]]
    torch.testing.assert_close(data[0], before, rtol=0, atol=0)


def test_mixing_needs_the_number_of_classes():
    with pytest.raises(
        ConfigError, match="must have num_classes when mixup or cutmix is on, got 0"
    ):
        Classification(nn.Linear(2, 2), mixup=0.8)


def test_top1_against_a_count(make_vit):
    model = make_vit(depth=1).train()
    images, labels = batch(7)
    with torch.no_grad():
        expected = 100 * float((model.eval()(images).argmax(1) == labels).float().mean())
    model.train()
    assert top1(model, images, labels, batch_size=3) == pytest.approx(expected)
    assert model.training
