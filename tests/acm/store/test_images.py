"""Images of the commands: numbered, normalised and augmented as their users expect."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from potstill.acm import acmize, from_pretrained, save_pretrained
from potstill.acm.config import Augment, BatchConfig, ConvertConfig, DistillConfig, ImageConfig
from potstill.acm.store.folders import convert
from potstill.acm.store.images import held_out, statistics, train_batches, train_transform
from potstill.core.adapters import statistics_of
from potstill.core.engine.batches import Shard
from potstill.core.errors import ConfigError, DataError
from potstill.core.images import CIFAR10, IMAGENET
from potstill.core.seed import seeded

TINY = {"size": 16, "patch": 4, "width": 24, "depth": 1, "heads": 3}


def folders(root, *names):
    for name in names:
        for i in range(2):
            path = root / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(path)
    return root


def training(data):
    small = replace(DistillConfig.training, batch=4)
    return DistillConfig(Path("m"), Path("o"), images=ImageConfig(data), training=small)


@pytest.fixture
def vit(vit):
    vit.acm_classes = ("car", "cat", "dog", "ship", "truck")
    return vit


def test_a_set_that_lacks_a_class_is_numbered_by_the_training_classes(vit, tmp_path):
    loader = held_out(BatchConfig(folders(tmp_path / "a", "cat", "truck")), vit)
    assert [int(label) for _, labels in loader for label in labels] == [1, 1, 4, 4]
    with pytest.raises(DataError, match="must be classes of the training images, got 'Truck'"):
        held_out(BatchConfig(folders(tmp_path / "b", "cat", "Truck")), vit)


def test_the_classes_of_the_training_travel_with_the_model(vit, tmp_path):
    save_pretrained(acmize(vit), tmp_path)
    assert from_pretrained(tmp_path).acm_classes == vit.acm_classes


def test_accuracy_is_left_out_and_said_so_where_classes_cannot_be_told(vit, tmp_path):
    vit.acm_classes = ()
    with pytest.warns(UserWarning, match="2 class folders, the model 5 outputs"):
        loader = held_out(BatchConfig(folders(tmp_path, "cat", "truck")), vit)
    assert next(iter(loader)).shape == (4, 3, 16, 16)  # images, no labels
    assert len(held_out(BatchConfig(tmp_path), vit, limit=3, labels=False).dataset) == 3


def test_head_and_folders_are_compared_before_training(vit, tmp_path):
    vit.acm_classes = ()
    data = folders(tmp_path, "cat", "dog")
    with pytest.raises(ConfigError, match=r"each of the 2 class folders .*, got 5; .*--classes 2"):
        train_batches(training(data), vit, labels=True)
    batches = train_batches(training(data), vit, labels=False)  # phases 1 and 2 need no labels
    assert next(batches.stream(0, Shard())).shape == (4, 3, 16, 16)


def test_statistics_are_the_models_or_free_numbers(vit, tmp_path):
    def found(**options):
        return statistics(ImageConfig(tmp_path, **options), vit)

    assert found() == statistics_of(vit) == ((0.5,) * 3, (0.5,) * 3)
    assert found(statistics="cifar10") == CIFAR10
    assert found(statistics="imagenet") == IMAGENET
    assert found(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    vit.pretrained_cfg = None
    with pytest.raises(ConfigError, match="pass --mean and --std"):
        found()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_stands_beside_a_checkpoint_reaches_the_model(tmp_path, suffix):
    dense = timm.create_model("vit_tiny_patch16_224", **KWARGS)
    path = tmp_path / f"vit{suffix}"
    if suffix == ".pth":  # as timm's and the official scripts write it
        torch.save({"model": {f"module.{k}": v for k, v in dense.state_dict().items()}}, path)
    else:
        save_file(dense.state_dict(), path)
    about = {"kwargs": KWARGS, "classes": ["b", "a"], "mean": [0.4] * 3, "std": [0.2] * 3}
    path.with_suffix(".json").write_text(json.dumps(about))
    convert(ConvertConfig("vit_tiny_patch16_224", checkpoint=path), tmp_path / "m")
    model = from_pretrained(tmp_path / "m")
    assert model.acm_classes == ("b", "a")
    assert statistics_of(model) == ((0.4,) * 3, (0.2,) * 3)
    torch.testing.assert_close(model.pos_embed, dense.pos_embed)
    given = ConvertConfig("vit_tiny_patch16_224", checkpoint=path, mean=(0.1,) * 3, std=(0.3,) * 3)
    convert(given, tmp_path / "n")
    assert statistics_of(from_pretrained(tmp_path / "n")) == ((0.1,) * 3, (0.3,) * 3)


KWARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3,
          "num_classes": 2}  # fmt: skip


def test_checkpoints_that_do_not_fit_or_need_code_are_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return print, ("run",)

    bad = tmp_path / "bad.pth"
    torch.save({"model": Code()}, bad)
    config = {**TINY, "model": "vit_tiny_patch16_224", "classes": 2}
    with pytest.raises(DataError, match=r"bad\.pth must be a whole checkpoint that loads without"):
        convert(ConvertConfig(**config, checkpoint=bad), tmp_path / "m")
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", **KWARGS).state_dict(), other)
    with pytest.raises(ConfigError, match="checkpoint must fit the model, got .*; check size"):
        convert(ConvertConfig(**{**config, "width": 48}, checkpoint=other), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_positions_of_another_grid_are_fitted(tmp_path):
    path = tmp_path / "small.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", **KWARGS).state_dict(), path)
    convert(
        ConvertConfig("vit_tiny_patch16_224", checkpoint=path, classes=2, **{**TINY, "size": 32}),
        tmp_path / "m",
    )
    assert from_pretrained(tmp_path / "m").pos_embed.shape == (1, 65, 24)


@pytest.mark.parametrize(
    ("augment", "names"),
    [
        (Augment(), ["RandomCrop", "RandomHorizontalFlip"]),
        (Augment(scale=(0.08, 1), color_jitter=0.4), ["RandomResizedCropAndInterpolation"]),
        (Augment(auto_augment="rand-m9-mstd0.5-inc1", erase=0.2), ["RandAugment", "RandomErasing"]),
    ],
)
def test_augmentation_is_timms_and_can_be_pickled(vit, augment, names):
    transform = train_transform(vit, IMAGENET, augment)
    for name in names:
        assert name in str(transform) or name in repr(transform)
    copy = pickle.loads(pickle.dumps(transform))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    shown = []
    for one in (transform, copy):
        with seeded(3):
            shown.append(one(image))
    assert shown[0].shape == (3, 16, 16)
    assert torch.equal(*shown)


def test_without_augmentation_an_image_is_its_centre_square(vit):
    still = train_transform(vit, ((0.0,) * 3, (1.0,) * 3), Augment(shift=0, hflip=0.0))
    values = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    expected = torch.from_numpy(values[:, 4:20]).permute(2, 0, 1) / 255
    torch.testing.assert_close(still(Image.fromarray(values)), expected)


def test_images_are_read_as_they_are_needed_and_batches_can_be_sent_to_workers(vit, tmp_path):
    data = folders(tmp_path, "car", "cat", "dog", "ship", "truck")
    batches = train_batches(training(data), vit, labels=True)
    again = pickle.loads(pickle.dumps(batches))
    (x, y), (u, v) = (next(source.stream(3, Shard(1))) for source in (batches, again))
    assert torch.equal(x, u)
    assert torch.equal(y, v)
    assert len(batches.dataset.names) == 10  # files, not their pixels
