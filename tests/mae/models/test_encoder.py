from __future__ import annotations

import pytest
import timm
import torch
from timm.models.beit import Beit

from potstill.core import tap
from potstill.core.errors import ConfigError, ShapeError
from potstill.mae import GridMasking, MaskedViT, MaskPlan, RandomMasking, UnsupportedModelError
from potstill.mae import visible as visible_patches


def sized(images, model):
    return images[:, :, : model.vit.patch_embed.img_size[0], : model.vit.patch_embed.img_size[1]]


def all_blocks(model, images, plan):
    names = [MaskedViT.block(index) for index in range(model.depth)]
    with torch.no_grad(), tap(model, *names) as readings:
        final = model(images, plan)
    return [readings[name].output for name in names], final


def unshuffled(tokens, plan, prefix):
    patches = tokens[:, prefix:].gather(1, plan.restore[:, :, None].expand(-1, -1, tokens.shape[2]))
    return tokens[:, :prefix], patches


def test_ratio_zero_equals_timm_at_every_block(any_vit, images):
    model = MaskedViT(any_vit)
    images = sized(images, model)
    plan = RandomMasking(0.0)(len(images), model.grid)
    ours, final = all_blocks(model, images, plan)
    with torch.no_grad():
        timm_final, theirs = any_vit.forward_intermediates(
            images, return_prefix_tokens=True, output_fmt="NLC"
        )
    for tokens, (patches, prefix) in zip(ours, theirs, strict=True):
        got_prefix, got_patches = unshuffled(tokens, plan, model.num_prefix_tokens)
        torch.testing.assert_close(got_prefix, prefix, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got_patches, patches, atol=1e-5, rtol=1e-5)
    got = torch.cat(unshuffled(final, plan, model.num_prefix_tokens), dim=1)
    if isinstance(any_vit.norm, torch.nn.Identity):
        timm_final = any_vit.fc_norm(timm_final)
    torch.testing.assert_close(got, timm_final, atol=1e-5, rtol=1e-5)


def test_hidden_patches_equal_forbidden_attention(any_vit, images):
    """Leaving patches out is the same as letting nobody attend to them."""
    model = MaskedViT(any_vit)
    images = sized(images, model)
    plan = RandomMasking(0.7)(len(images), model.grid)
    ours, _ = all_blocks(model, images, plan)
    allowed = torch.cat((torch.ones(len(images), model.num_prefix_tokens), 1 - plan.mask), dim=1)
    allowed = allowed[:, None, None, :].bool()
    mask = {"attn_mask": allowed}
    if isinstance(any_vit, Beit):  # has no such argument, but a bias
        mask = {}
        for block in any_vit.blocks:
            bias = block.attn._get_rel_pos_bias().detach().masked_fill(~allowed, -torch.inf)
            block.attn._get_rel_pos_bias = lambda bias=bias: bias
    with torch.no_grad():
        theirs = any_vit.forward_intermediates(
            images,
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
            **mask,
        )
    for tokens, (patches, prefix) in zip(ours, theirs, strict=True):
        seen = patches.gather(1, plan.keep[:, :, None].expand(-1, -1, patches.shape[2]))
        expected = torch.cat((prefix, seen), dim=1)
        torch.testing.assert_close(tokens, expected, atol=2e-5, rtol=1e-5)


def test_without_plan_it_is_the_model(any_vit, images):
    model = MaskedViT(any_vit)
    images = sized(images, model)
    with torch.no_grad():
        tokens = model(images)
        expected = any_vit.forward_features(images)
    if isinstance(any_vit.norm, torch.nn.Identity):
        expected = any_vit.fc_norm(expected)
    torch.testing.assert_close(tokens, expected)


def test_the_model_is_as_before(any_vit, images):
    model = MaskedViT(any_vit)
    images = sized(images, model)
    with torch.no_grad():
        before = any_vit(images)
        keys = list(any_vit.state_dict())
        model(images, GridMasking(0.75)(len(images), model.grid))
        torch.testing.assert_close(any_vit(images), before, rtol=0, atol=0)
    assert list(any_vit.state_dict()) == keys


def test_visible_restores_after_an_exception(make_vit):
    vit = make_vit()
    own = vit.patch_drop
    with pytest.raises(RuntimeError, match="on purpose"), visible_patches(vit, torch.zeros(1, 1)):
        raise RuntimeError("on purpose")
    assert vit.patch_drop is own


def test_blocks_past_the_tap_are_not_called(any_vit, images):
    model = MaskedViT(any_vit)
    images = sized(images, model)
    calls = dict.fromkeys(range(model.depth), 0)
    for index, block in enumerate(any_vit.blocks):
        block.register_forward_hook(lambda *_, i=index: calls.__setitem__(i, calls[i] + 1))
    any_vit.norm.register_forward_hook(lambda *_: calls.__setitem__("norm", 1))
    plan = RandomMasking(0.5)(len(images), model.grid)
    with torch.no_grad(), tap(model, MaskedViT.block(1), stop=True):
        assert model(images, plan) is None
    assert calls == {0: 1, 1: 1, 2: 0, 3: 0}


def test_pruning_keeps_the_tapped_features(any_vit, images):
    model = MaskedViT(any_vit)
    images = sized(images, model)
    plan = RandomMasking(0.5)(len(images), model.grid)
    expected = all_blocks(model, images, plan)[0][:3]
    parameters = sum(p.numel() for p in model.parameters())
    pruned = model.prune(2)
    assert pruned.depth == 3
    assert sum(p.numel() for p in pruned.parameters()) < 0.85 * parameters
    torch.testing.assert_close(all_blocks(pruned, images, plan)[0], expected)
    with pytest.raises(ConfigError, match=r"last must be in \[0, 3\), got 3"):
        pruned.prune(3)


def test_gradient_reaches_visible_patches_only(make_vit, images):
    model = MaskedViT(make_vit())
    images.requires_grad_()
    plan = RandomMasking(0.75)(3, model.grid)
    model(images, plan).sum().backward()
    touched = images.grad.abs().sum(1).view(3, 4, 16, 4, 16).sum((2, 4)).flatten(1) > 0
    torch.testing.assert_close(touched, plan.mask == 0)


def test_fixed_positions(make_vit):
    model = MaskedViT(make_vit()).fix_positions()
    assert not model.vit.pos_embed.requires_grad
    torch.testing.assert_close(model.vit.pos_embed[:, 0], torch.zeros(1, 48))
    rotary = MaskedViT(make_vit("vit_small_patch16_dinov3")).fix_positions()
    assert rotary.vit.pos_embed is None


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_other_families_are_refused(name):
    with pytest.raises(
        UnsupportedModelError, match=r"timm VisionTransformer: vit_\*.*got "
    ) as info:
        MaskedViT(timm.create_model(name))
    assert isinstance(info.value, TypeError)


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vitamin_small_224"])
def test_hybrids_are_refused_for_what_they_are(name):
    hybrid = timm.create_model(name, depth=1, num_classes=0) if "tiny" in name else None
    hybrid = hybrid or timm.create_model(name, num_classes=0)
    with pytest.raises(
        UnsupportedModelError, match="hybrid whose patches come from a .*already seen"
    ):
        MaskedViT(hybrid)


def test_model_that_drops_patches_is_refused(make_vit):
    with pytest.raises(ConfigError, match=r"patch_drop_rate=0, got 0\.25"):
        MaskedViT(make_vit(patch_drop_rate=0.25))


def test_size_that_is_not_whole_patches_is_refused(make_vit):
    with pytest.raises(ConfigError, match=r"\(70, 70\) of vit must be divisible by its patch size"):
        MaskedViT(make_vit(img_size=70))


@pytest.mark.parametrize("shape", [(2, 3, 48, 64), (2, 1, 64, 64), (3, 64, 64)])
def test_wrong_images_are_refused(make_vit, shape):
    with pytest.raises(ShapeError, match=r"images must be \[B 3 64 64\], got"):
        MaskedViT(make_vit())(torch.zeros(shape))


def test_wrong_plan_is_refused(make_vit, images):
    model = MaskedViT(make_vit())
    with pytest.raises(ShapeError, match="3 images of 4 x 4 patches, got 2 of 16"):
        model(images, RandomMasking(0.5)(2, (4, 4)))
    with pytest.raises(ShapeError, match="got 3 of 9"):
        model(images, MaskPlan(torch.zeros(3, 4).long(), torch.zeros(3, 5).long()))


def test_batch_of_one(make_vit, images):
    model = MaskedViT(make_vit())
    assert model(images[:1], RandomMasking(0.75)(1, model.grid)).shape == (1, 5, 48)


class VisibleTokens(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, keep):
        hidden = keep.new_zeros(len(keep), 16 - keep.shape[1])
        return self.model(images, MaskPlan(keep, hidden))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_masked_encoder_is_exported_with_indices_as_input(make_vit, images, name):
    model = VisibleTokens(MaskedViT(make_vit(name)).eval())
    one, other = (RandomMasking(0.75)(3, (4, 4)).keep for _ in range(2))
    program = torch.export.export(model, (images, one)).module()
    with torch.no_grad():
        torch.testing.assert_close(program(images, other), model(images, other))
