"""Students without patch tokens."""

import pytest
import timm
import torch
from torch.optim import AdamW

from potstill.core import fit
from potstill.core.errors import ConfigError
from potstill.mae import MapToMasked, RandomMasking

CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
SWIN = {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1),
        "window_size": 2}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [("convnext_atto", CONVNEXT), ("resnet10t", {}), ("swin_tiny_patch4_window7_224", SWIN)],
)
def test_a_map_learns_the_teachers_features(make_vit, images, name, options):
    teacher = make_vit("vit_small_patch14_reg4_dinov2")  # of 56 pixels
    student = timm.create_model(name, num_classes=7, **options)
    distiller = MapToMasked(student, teacher, masking=RandomMasking(0.5))
    seen = []
    teacher.blocks[0].register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    history = fit(distiller, [images], steps=12, lr=3e-3, optimizer=AdamW, progress=False)
    assert set(seen) == {5 + 8}, "registers, class token and half of the patches"
    assert history[-1]["align"] < 0.9 * history[0]["align"]
    exported = distiller.export_student()
    assert exported(images).shape == (3, 7)
    assert all(parameter.requires_grad for parameter in exported.parameters())


def test_regions_are_shared(make_vit):
    """A map that is a plane of its columns arrives at the patches as the same plane."""
    distiller = MapToMasked(timm.create_model("resnet10t"), make_vit())
    plane = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    tokens = distiller.on_grid(plane).view(4, 4)
    torch.testing.assert_close(tokens[0], tokens[3])
    assert torch.all(tokens[0].diff() > 0.2)


def test_a_transformer_belongs_elsewhere(make_vit):
    with pytest.raises(ConfigError, match="feature map, got VisionTransformer; MaskedToMasked is"):
        MapToMasked(make_vit(), make_vit())
