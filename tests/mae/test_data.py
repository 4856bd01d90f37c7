from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.core import Batches
from potstill.core.engine.batches import Shard
from potstill.core.errors import DataError
from potstill.core.seed import generator
from potstill.mae import ImageSet, ResidentImages, eval_transform, keyed, train_transform
from potstill.mae.data import IMAGENET

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


def test_classes_are_folders(folder):
    images = ImageSet(folder, labels=True)
    assert (len(images), images.classes) == (12, ("cat", "dog"))
    assert [images[i][1] for i in (0, 5, 6, 11)] == [0, 0, 1, 1]
    assert images[0][0].size == (12, 12)


def test_flat_folder_without_classes_will_do(folder):
    flat = ImageSet(folder / "cat")
    assert len(flat) == 6
    assert isinstance(flat[0], Image.Image)
    with pytest.raises(DataError, match=r"one folder per class .* 6 images in 1 folder"):
        ImageSet(folder / "cat", labels=True)


def test_zip_gives_the_same_images(folder):
    archive = folder / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*.png"):
            file.write(path, "deep/train/" + path.relative_to(folder).as_posix())
    inside, plain = ImageSet(archive / "deep" / "train", labels=True), ImageSet(folder, labels=True)
    assert inside.names == plain.names
    for index in (0, 11):
        assert np.array_equal(np.asarray(inside[index][0]), np.asarray(plain[index][0]))
        assert inside[index][1] == plain[index][1]
    again = pickle.loads(pickle.dumps(inside))  # as worker processes get it
    assert np.array_equal(np.asarray(again[3][0]), np.asarray(plain[3][0]))


def test_corrupt_image_is_skipped_and_counted(folder, caplog):
    (folder / "cat" / "2.png").write_bytes(b"not an image")
    whole = (folder / "cat" / "3.png").read_bytes()
    (folder / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    images = ImageSet(folder, labels=True)
    replaced = [images[2], images[2], images[3]]
    assert images.corrupt == 2
    assert all(np.array_equal(np.asarray(r[0]), np.asarray(images[4][0])) for r in replaced)
    assert caplog.text.count("cat/2.png cannot be read and is skipped") == 1


def test_nothing_readable_ends_with_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        ImageSet(tmp_path)[0]


def test_missing_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(DataError, match="must be a folder or a .zip file, got nothing there"):
        ImageSet(tmp_path / "absent")
    with pytest.raises(DataError, match=r"must hold images \(.jpg.*got none"):
        ImageSet(tmp_path)


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


def resident(n=20, batch=4, **options):
    images = torch.randint(0, 256, (n, 3, 10, 10), dtype=torch.uint8)
    return ResidentImages(images, torch.arange(n), batch, GRAY, **options)


def test_resident_epoch_is_a_permutation_for_any_number_of_ranks():
    source = resident()
    for world in (1, 2):
        steps = 5 // world
        seen = [source(k, r, world)[1] for k in range(steps) for r in range(world)]
        assert len(torch.cat(seen).unique()) == 4 * steps * world
    torch.testing.assert_close(source(7, 0, 1), source(7, 0, 1))
    assert not torch.equal(source(0, 0, 1)[1], source(5, 0, 1)[1])
    assert len(source) == 5


def test_resident_shift_and_flip_against_numpy():
    source = resident(shift=3)
    images = source.images[:6]
    got = source._shift_and_flip(images, generator("x"))
    rng = generator("x")
    down, right = torch.randint(-3, 4, (2, 6, 1), generator=rng)[..., 0].tolist()
    flip = (torch.rand(6, 1, generator=rng) < 0.5)[:, 0].tolist()
    for i in range(6):
        padded = np.pad(images[i].numpy(), ((0, 0), (3, 3), (3, 3)), mode="reflect")
        window = padded[:, 3 + down[i] :, :][:, :10]
        columns = np.arange(10)[::-1] if flip[i] else np.arange(10)
        expected = window[:, :, columns + 3 + right[i]]
        assert np.array_equal(got[i].numpy(), expected)


def test_resident_normalization():
    source = resident()
    values = source.normalized(source.images)
    torch.testing.assert_close(values, (source.images / 255 - 0.5) / 0.5)


def test_resident_needs_one_size(folder):
    Image.new("RGB", (13, 12)).save(folder / "dog" / "9.png")
    with pytest.raises(DataError, match=r"must have one size, got \[\(12, 12\), \(13, 12\)\]"):
        ResidentImages.of(ImageSet(folder), 4, GRAY)
    with pytest.raises(DataError, match="2 images must fill a batch of 4"):
        resident(n=2)
