from __future__ import annotations

import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from potstill.core import Batches
from potstill.core.engine.batches import Shard
from potstill.core.errors import DataError
from potstill.core.images import IMAGENET
from potstill.core.seed import generator
from potstill.mae import ImageSet, eval_transform, keyed, train_transform
from potstill.mae.training.data import held_out

GRAY = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(6):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    return tmp_path


def test_augmentation_depends_on_its_key_only(folder):
    images = ImageSet(folder, labels=True)
    augment = keyed(train_transform(16, GRAY, strong=True, erase=0.25))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = augment(images[0], generator("k", 1))
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    torch.rand(5), np.random.rand(3)  # noqa: NPY002
    torch.testing.assert_close(augment(images[0], generator("k", 1)), one, rtol=0, atol=0)
    assert not torch.equal(augment(images[0], generator("k", 2))[0], one[0])
    assert one[0].shape == (3, 16, 16)


@pytest.mark.parametrize("strong", [False, True])
def test_augmentation_can_be_sent_to_workers_that_are_spawned(folder, strong):
    augment = keyed(train_transform(16, GRAY, strong=strong, erase=0.25))
    images, again = pickle.loads(pickle.dumps((ImageSet(folder), augment)))
    here = augment(images[0], generator("k", 1))
    torch.testing.assert_close(again(images[0], generator("k", 1)), here, rtol=0, atol=0)


def test_augmentation_does_not_depend_on_workers(folder):
    def batches(workers):
        return Batches(
            ImageSet(folder), 4, workers=workers, augment=keyed(train_transform(16, IMAGENET))
        )

    alone, helped = (batches(w).stream(0, Shard(5)) for w in (0, 2))
    for _ in range(4):
        torch.testing.assert_close(next(alone), next(helped), rtol=0, atol=0)


def test_eval_transform_is_fixed(folder):
    images = ImageSet(folder, transform=eval_transform(8, GRAY))
    torch.testing.assert_close(images[0], images[0])
    assert images[0].shape == (3, 8, 8)


def test_test_images_are_numbered_by_the_training_classes(folder, tmp_path_factory):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1)
    classes = ("aardvark", *ImageSet(folder, labels=True).classes)
    labels = torch.cat([labels for _, labels in held_out(str(folder), vit, classes=classes)])
    assert labels.min() == 1
    with pytest.raises(DataError, match="must be classes of the training images, got"):
        held_out(str(folder), vit, classes=("aardvark",))
