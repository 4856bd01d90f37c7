from __future__ import annotations

import copy
import math

import pytest
import torch

from potstill.core.errors import ConfigError
from potstill.core.testing import requires_cuda
from potstill.mae import (
    Align,
    BlockMasking,
    FeatureDistance,
    GridMasking,
    MaskedAutoencoder,
    MaskedToMasked,
    MaskedViT,
    MaskPlan,
    RandomMasking,
    visible,
)

PLAN = MaskPlan(
    torch.tensor([[3, 0, 9, 14], [1, 2, 8, 15], [5, 6, 7, 4]]),
    torch.stack(
        [
            torch.tensor([p for p in range(16) if p not in seen])
            for seen in ([3, 0, 9, 14], [1, 2, 8, 15], [5, 6, 7, 4])
        ]
    ),
)


def fixed(batch, grid, device=None, generator=None):
    return MaskPlan(PLAN.keep[:batch], PLAN.hidden[:batch])


def make(
    make_vit, teacher="vit_tiny_patch16_224", decoder=True, masking=fixed, prepare=None, **options
):
    student = MaskedAutoencoder(make_vit(), {"depth": 1, "width": 32} if decoder else None)
    big = make_vit(teacher, embed_dim=72, seed=1) if teacher else None
    big = prepare(MaskedViT(big)) if prepare else big
    return MaskedToMasked(student, big, masking=masking, **options)


def block_reference(x, block, heads):
    """One pre-norm transformer block, written out."""

    def norm(x, layer):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias

    batch, length, width = x.shape
    qkv = norm(x, block.norm1) @ block.attn.qkv.weight.T + block.attn.qkv.bias
    q, k, v = qkv.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(width // heads)
    mixed = torch.einsum("bhij,bhjd->bihd", scores.softmax(-1), v).reshape(batch, length, width)
    x = x + mixed @ block.attn.proj.weight.T + block.attn.proj.bias
    h = norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    return x + h @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def encoder_reference(vit, images, keep):
    """Features after each block, visible patches only, from the definition in float64."""
    size, weight = 16, vit.patch_embed.proj.weight
    batch, grid = len(images), images.shape[-1] // size
    tokens = torch.stack([
        torch.einsum(
            "bchw,dchw->bd",
            images[:, :, r * size : (r + 1) * size, c * size : (c + 1) * size],
            weight,
        )
        for r in range(grid)
        for c in range(grid)
    ], dim=1) + vit.patch_embed.proj.bias  # fmt: skip
    tokens = tokens + vit.pos_embed[:, 1:]
    seen = torch.stack([tokens[b, keep[b]] for b in range(batch)])
    first = (vit.cls_token + vit.pos_embed[:, :1]).expand(batch, -1, -1)
    x, features = torch.cat((first, seen), dim=1), []
    for block in vit.blocks:
        x = block_reference(x, block, block.attn.num_heads)
        features.append(x)
    return features


def loss_reference(distiller, images):
    """The loss of the design note in float64, independent of our forward."""
    distiller = copy.deepcopy(distiller).double()
    images = images.double()
    student, teacher = distiller.student, distiller.teacher.model
    f_s = encoder_reference(student.encoder.vit, images, PLAN.keep)
    f_t = encoder_reference(teacher.vit, images, PLAN.keep)[2]
    projector = distiller.objective.module("align/2").projector[0]
    p_s = f_s[2] @ projector.weight.T + projector.bias
    p_s, f_t = (h / h.norm(dim=-1, keepdim=True) for h in (p_s, f_t))
    align = (p_s - f_t).abs().mean()

    norm, decoder = student.encoder.vit.norm, student.decoder
    z = torch.nn.functional.layer_norm(f_s[-1], (48,), norm.weight, norm.bias, norm.eps)
    z = z @ decoder.embed.weight.T + decoder.embed.bias
    full = decoder.mask_token.expand(3, 16, -1).clone()
    for b in range(3):
        full[b, PLAN.keep[b]] = z[b, 1:]
    y = torch.cat((z[:, :1], full), dim=1) + decoder.positions
    for block in decoder.blocks:
        y = block_reference(y, block, block.attn.num_heads)
    y = torch.nn.functional.layer_norm(
        y, (32,), decoder.norm.weight, decoder.norm.bias, decoder.norm.eps
    )
    y = (y @ decoder.head.weight.T + decoder.head.bias)[:, 1:]
    cut = images.unfold(2, 16, 16).unfold(3, 16, 16)  # [B C r c y x]
    target = cut.permute(0, 2, 3, 4, 5, 1).reshape(3, 16, -1)
    pixels = (PLAN.mask.double() * ((y - target) ** 2).mean(-1)).sum() / PLAN.mask.sum()
    return pixels, align


def test_loss_against_an_independent_float64_reference(make_vit, images):
    distiller = make(make_vit, alpha=0.7, distance=FeatureDistance("l1", "l2"))  # as published
    losses = distiller(images, step=0)
    with torch.no_grad():
        pixels, align = loss_reference(distiller, images)
    terms = {k: v.double() for k, v in losses.terms.items()}
    torch.testing.assert_close(terms["pixels"], pixels, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["align/2"], align, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.total.double(), pixels + 0.7 * align, rtol=1e-5, atol=0)


@pytest.mark.parametrize("decoder", [True, False])
def test_no_block_past_the_tap_is_called(make_vit, images, decoder):
    distiller = make(make_vit, decoder=decoder, layers=[0, 1])
    calls = {"student": [], "teacher": []}
    models = {
        "student": distiller.student.encoder.vit,
        "teacher": distiller.teacher.model.vit,
    }
    for whose, vit in models.items():
        for index, block in enumerate(vit.blocks):
            block.register_forward_hook(lambda *_, w=whose, i=index: calls[w].append(i))
        vit.head.register_forward_hook(lambda *_, w=whose: calls[w].append("head"))
    distiller(images, step=0)
    assert calls["teacher"] == [0, 1]
    assert calls["student"] == ([0, 1, 2, 3] if decoder else [0, 1])


def test_teacher_gets_no_gradient_and_is_not_saved(make_vit, images):
    distiller = make(make_vit).train()
    before = copy.deepcopy(distiller.teacher.model.state_dict())
    distiller(images, step=0).total.backward()
    assert all(p.grad is None for p in distiller.teacher.model.parameters())
    torch.testing.assert_close(distiller.teacher.model.state_dict(), before, rtol=0, atol=0)
    assert not [k for k in distiller.state_dict() if "teacher" in k]
    assert any("projector" in k for k in distiller.state_dict())
    trained = [n for n, p in distiller.named_parameters() if p.grad is not None]
    assert any(n.startswith("student.encoder.vit.blocks.3") for n in trained)


def test_without_alignment_the_teacher_rests(make_vit, images):
    distiller = make(make_vit, alpha=lambda step: float(step >= 5))
    calls = []
    distiller.teacher.model.vit.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    assert set(distiller(images, step=0).terms) == {"pixels"}
    assert not calls
    assert set(distiller(images, step=5).terms) == {"pixels", "align/2"}
    assert calls


def test_plain_masked_autoencoder_needs_no_teacher(make_vit, images):
    losses = make(make_vit, teacher=None)(images, step=0)
    assert set(losses.terms) == {"pixels"}


def test_labels_are_not_looked_at(make_vit, images):
    distiller = make(make_vit)
    one, two = distiller(images, 0), distiller((images, torch.tensor([0, 1, 2])), 0)
    torch.testing.assert_close(one.total, two.total)


def test_several_taps_have_a_term_each(make_vit, images):
    distiller = make(make_vit, layers=[(1, 0), (1, 3), (3, 2)])
    assert set(distiller(images, 0).terms) == {"pixels", "align/1-0", "align/1-3", "align/3"}


def test_both_see_the_same_patches(make_vit, images):
    """A student equal to its teacher is aligned perfectly, under any masking."""
    vit = make_vit()
    student = MaskedAutoencoder(copy.deepcopy(vit), fixed_positions=False)
    distiller = MaskedToMasked(student, vit, masking=RandomMasking(0.75), projector="none")
    assert distiller(images, 0).terms["align/2"] < 1e-7
    student = MaskedAutoencoder(make_vit(seed=3), fixed_positions=False)
    other = MaskedToMasked(student, vit, masking=RandomMasking(0.75), projector="none")
    assert other(images, 0).terms["align/2"] > 1e-2


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_small_patch16_dinov3"])
def test_other_prefix_tokens_leave_the_patches(make_vit, images, name, caplog):
    distiller = make(make_vit, teacher=name)
    assert "only patch tokens are aligned" in caplog.text
    shapes = []
    criterion = distiller.objective.module("align/2")
    criterion.register_forward_pre_hook(lambda _, args: shapes.extend(a.shape for a in args))
    distiller(images, 0)
    assert [s[1] for s in shapes] == [4, 4]


def test_teacher_input_is_normalized_anew(make_vit, images):
    ours, theirs = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), ((0.1, 0.2, 0.3), (0.5, 0.5, 0.4))
    distiller = make(make_vit, statistics=(ours, theirs))
    mean, std = (torch.tensor(v)[:, None, None] for v in ours)
    raw = torch.rand(2, 3, 64, 64)
    mean_t, std_t = (torch.tensor(v)[:, None, None] for v in theirs)
    got = distiller.teacher_input((raw - mean) / std)
    torch.testing.assert_close(got, (raw - mean_t) / std_t, atol=1e-5, rtol=1e-5)
    unchanged = make(make_vit, statistics=(ours, ours)).teacher_input(images)
    assert unchanged is images


def test_teacher_in_bfloat16(make_vit, images):
    exact = make(make_vit)(images, 0)
    rounded = make(make_vit, prepare=lambda teacher: teacher.to(torch.bfloat16))(images, 0)
    assert rounded.terms["align/2"].dtype == torch.float32
    torch.testing.assert_close(rounded.terms["align/2"], exact.terms["align/2"], rtol=2e-2, atol=0)


def test_pruned_teacher_gives_the_same_loss(make_vit, images):
    layers = [(2, 2)]
    pruned = make(make_vit, prepare=lambda teacher: teacher.prune(2), layers=layers)
    whole = make(make_vit)
    assert pruned.teacher.model.depth == 3
    torch.testing.assert_close(whole(images, 0).terms, pruned(images, 0).terms)


def test_same_seed_same_loss(make_vit, images):
    totals = []
    for _ in range(2):
        distiller = make(make_vit, masking=RandomMasking(0.75))
        torch.manual_seed(7)
        totals.append(distiller(images, 0).total)
    torch.testing.assert_close(*totals, rtol=0, atol=0)


def test_batch_of_one(make_vit, images):
    assert bool(torch.isfinite(make(make_vit)(images[:1], 0).total))


def test_default_is_what_the_measurements_have(make_vit):
    """In Python and in commands; the published ``l2`` makes the term a tenth of the loss."""
    distance = make(make_vit).objective.module("align/2").criterion
    assert (distance.kind, distance.norm) == ("l1", "l2_sqrt_dim")
    assert (Align().distance, Align().norm) == ("l1", "l2_sqrt_dim")
    sharper = make(make_vit, distance=FeatureDistance("mse", "layernorm"))
    assert sharper.objective.module("align/2").criterion.kind == "mse"


def test_ratio_that_leaves_nothing_is_refused_at_once(make_vit):
    with pytest.raises(ConfigError, match=r"at least one of 16 patches visible, got 0\.98"):
        make(make_vit, masking=RandomMasking(0.98))


def test_ratio_zero_with_decoder_is_refused(make_vit):
    with pytest.raises(ConfigError, match=r"hide at least one patch .* got RandomMasking\(ratio=0"):
        make(make_vit, masking=RandomMasking(0.0))
    make(make_vit, masking=RandomMasking(0.0), decoder=False)


def test_unequal_grids_are_refused(make_vit):
    student = MaskedAutoencoder(make_vit())
    finer = make_vit(patch_size=8)
    with pytest.raises(
        ConfigError, match=r"patch grid \(4, 4\), got \(8, 8\).*with_grid\(\(4, 4\)\)"
    ):
        MaskedToMasked(student, finer)
    same = MaskedToMasked(student, MaskedViT(finer).with_grid((4, 4)))
    assert same.teacher.model.image_size == (32, 32)
    with pytest.raises(ConfigError, match=r"images of 3 channels like the student, got 1"):
        MaskedToMasked(student, make_vit(in_chans=1))


def test_a_teacher_of_larger_patches_sees_the_same_regions(make_vit):
    """What fills the left half of the student's image fills that of the teacher's."""
    teacher = make_vit(patch_size=32, img_size=128, embed_dim=72)
    distiller = MaskedToMasked(MaskedAutoencoder(make_vit()), teacher)
    left = torch.zeros(1, 3, 64, 64)
    left[..., :32] = 1
    seen = distiller.teacher_input(left)
    assert seen.shape == (1, 3, 128, 128)
    torch.testing.assert_close(seen[..., :52], torch.ones(1, 3, 128, 52), atol=0.1, rtol=0)
    assert torch.isfinite(distiller(left, 0).total)


def test_missing_projector_is_refused(make_vit):
    with pytest.raises(ConfigError, match=r"got 'none' for 48 \(student\) and 72 \(teacher\)"):
        make(make_vit, projector="none")


def test_nothing_to_learn_from_is_refused(make_vit):
    with pytest.raises(ConfigError, match="a teacher or a decoder must be given, got neither"):
        MaskedToMasked(MaskedAutoencoder(make_vit()))


def test_block_outside_a_model_is_refused(make_vit):
    with pytest.raises(ConfigError, match="student has blocks 0 to 3, got 9"):
        make(make_vit, layers=9)


def test_model_without_blocks_is_refused(make_vit):
    with pytest.raises(TypeError, match="got Linear; choose such a model"):
        MaskedToMasked(MaskedAutoencoder(make_vit()), torch.nn.Linear(2, 2))


def test_masked_forward_inside_visible_is_the_masked_encoder(make_vit, images):
    vit = make_vit().eval()
    with torch.no_grad(), visible(vit, PLAN.keep):
        direct = vit.forward_features(images)
    with torch.no_grad():
        torch.testing.assert_close(MaskedViT(vit)(images, PLAN), direct)


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"global_pool": "avg"}, {"name": "deit_tiny_distilled_patch16_224"}]
)
def test_every_trainable_parameter_gets_a_gradient(make_vit, images, decoder, options):
    """What waits for a gradient in vain stops distributed training."""
    student = MaskedAutoencoder(make_vit(**options), {"depth": 1, "width": 32} if decoder else None)
    distiller = MaskedToMasked(student, make_vit(seed=1), masking=fixed)
    distiller(images, 0).total.backward()
    waiting = [n for n, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert waiting == []


@requires_cuda
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_cuda_gives_the_loss_of_the_cpu(make_vit, images, name):
    def on_device(batch, grid, device=None, generator=None):
        return MaskPlan(*(index[:batch].to(device or "cpu") for index in PLAN))

    distiller = make(make_vit, teacher=name, masking=on_device)
    on_cpu = distiller(images, 0)
    on_gpu = distiller.to("cuda")(images.to("cuda"), 0)
    terms = {name: value.cpu() for name, value in on_gpu.terms.items()}
    torch.testing.assert_close(terms, on_cpu.terms, rtol=1e-3, atol=1e-4)


@requires_cuda
@pytest.mark.parametrize("masking", [RandomMasking(), BlockMasking(), GridMasking()])
def test_masks_are_drawn_on_cuda(masking):
    plan = masking(4, (14, 14), device="cuda")
    order = torch.cat((plan.keep, plan.hidden), dim=1).sort(dim=1).values
    torch.testing.assert_close(order.cpu(), torch.arange(196).expand(4, -1))
