from __future__ import annotations

import pytest
import torch

from potstill.core.errors import ConfigError
from potstill.mae import MaskedAutoencoder, PatchDecoder, RandomMasking, patchify


def make(share=1.0, **options):
    return PatchDecoder(
        24, grid=(4, 4), patch_values=48, **{"depth": 2, "width": 32, "share": share, **options}
    )


def test_against_the_published_layout():
    """All L positions in image order, mask tokens between the visible: the same predictions."""
    decoder, plan, tokens = make(), RandomMasking(0.75)(2, (4, 4)), torch.randn(2, 5, 24)
    x = decoder.embed(tokens)
    shuffled = torch.cat((x[:, 1:], decoder.mask_token.expand(2, 12, -1)), dim=1)
    restored = shuffled.gather(1, plan.restore[:, :, None].expand(-1, -1, 32))
    full = torch.cat((x[:, :1], restored), dim=1) + decoder.positions
    everything = decoder.head(decoder.norm(decoder.blocks(full)))[:, 1:]
    expected = everything.gather(1, plan.hidden[:, :, None].expand(-1, -1, 48))
    torch.testing.assert_close(decoder(tokens, plan), expected, atol=1e-5, rtol=1e-5)


def test_subset_has_fewer_mask_tokens():
    decoder, plan = make(share=0.25), RandomMasking(0.75)(2, (4, 4))
    lengths = []
    decoder.blocks.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    assert decoder(torch.randn(2, 5, 24), plan).shape == (2, 3, 48)
    assert decoder(torch.randn(2, 5, 24), plan, everything=True).shape == (2, 12, 48)
    assert lengths == [1 + 4 + 3, 1 + 4 + 12]


def test_at_least_one_patch_is_decoded():
    assert make(share=0.01).num_decoded(5) == 1


def test_prefix_tokens_are_passed_on():
    decoder, plan = make(num_prefix_tokens=5), RandomMasking(0.75)(2, (4, 4))
    assert decoder(torch.randn(2, 5 + 4, 24), plan).shape == (2, 12, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"width": 30}, "divisible by 4"),
        ({"width": 32, "heads": 5}, "divisible by 4 and by 5 heads, got 32"),
        ({"share": 0.0}, r"share must be in \(0, 1\], got 0.0"),
        ({"share": 1.5}, r"share must be in \(0, 1\], got 1.5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.parametrize("normalized", [False, True])
def test_reconstruction_keeps_what_is_visible(make_vit, images, normalized):
    student = MaskedAutoencoder(make_vit(), {"depth": 1, "width": 32, "share": 0.5})
    plan = RandomMasking(0.75)(3, (4, 4))
    painted = student.reconstruct(images, plan, normalized)
    ours, true = (patchify(x, (16, 16)) for x in (painted, images))
    same = (ours == true).all(-1)
    torch.testing.assert_close(same, plan.mask == 0)
    if normalized:  # a prediction of nothing is a patch of the true mean
        torch.nn.init.zeros_(student.decoder.head.weight)
        flat = patchify(student.reconstruct(images, plan, True), (16, 16))
        torch.testing.assert_close(flat.mean(-1), true.mean(-1), atol=1e-5, rtol=0)


def test_reconstruction_needs_a_decoder(make_vit, images):
    student = MaskedAutoencoder(make_vit())
    assert student(images, RandomMasking(0.75)(3, (4, 4))) is None
    with pytest.raises(RuntimeError, match="no decoder"):
        student.reconstruct(images, RandomMasking(0.75)(3, (4, 4)))


def test_export_is_a_plain_trainable_copy(make_vit, images):
    vit = make_vit().eval()
    student = MaskedAutoencoder(vit)
    exported = student.export_student()
    assert type(exported) is type(vit)
    assert all(p.requires_grad for p in exported.parameters())
    torch.testing.assert_close(exported(images), vit(images))
    assert exported is not vit
