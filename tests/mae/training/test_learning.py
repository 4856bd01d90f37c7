"""That it learns something worth having, on real images."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from potstill.core import cosine, fit
from potstill.core.store.data import locate
from potstill.core.testing import requires_data
from potstill.mae import (
    Classification,
    FeatureDistance,
    ImageSet,
    MaskedAutoencoder,
    MaskedToMasked,
    ResidentImages,
    adamw,
    load_model,
    top1,
)

CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262))
TEACHER = "vision/tiny_vit_cifar10.safetensors", "vision/tiny_vit_cifar10.json"


def train(distiller, batches, epochs):
    return fit(
        distiller, batches, steps=epochs * len(batches), lr=2e-3, optimizer=adamw(),
        schedule=cosine(warmup=0.1), progress=False,
    )  # fmt: skip


@pytest.mark.slow  # about 25 s on one core: four short trainings on 2 000 images
@requires_data("vision/cifar10_10k.zip", *TEACHER)
def test_distilled_student_beats_scratch_after_equal_fine_tuning():
    archive = locate("vision/cifar10_10k.zip") / "cifar10"
    train_set, test_set = (
        ResidentImages.of(ImageSet(archive / part, labels=True), 64, CIFAR)
        for part in ("train", "test")
    )
    batches = ResidentImages(train_set.images[::5], train_set.targets[::5], 64, CIFAR)
    held = test_set.normalized(test_set.images), test_set.targets
    teacher = load_model(TEACHER[0])

    def make():
        torch.manual_seed(0)
        return VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4,
                                 num_classes=10, global_pool="avg")  # fmt: skip

    scratch = Classification(make())
    train(scratch, batches, 3)
    student = MaskedAutoencoder(make(), {"depth": 1, "width": 64, "heads": 4}, fixed_positions=True)
    distance = FeatureDistance("l1", "l2_sqrt_dim")
    distiller = MaskedToMasked(student, teacher.model, distance=distance)
    history = train(distiller, batches, 6)
    for name in ("pixels", "align/2"):
        assert history[-1][name] < 0.85 * history[0][name]
    tuned = Classification(distiller.export_student())
    train(tuned, batches, 3)
    before, after = (top1(d.student, *held) for d in (scratch, tuned))
    assert after > before + 3, (before, after)  # measured: 25.90, 30.65
