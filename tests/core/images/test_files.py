"""Folders and zip files of images, read one at a time."""

import io
import os
import pickle
import random
import tarfile
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.core.errors import ConfigError, DataError
from potstill.core.images import ImageSet, ResidentImages, image_path, keyed, load_images
from potstill.core.seed import generator


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


def test_postscript_under_another_name_is_no_image(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"none of the 1 images .* can be read; a\.png: cannot"):
        ImageSet(tmp_path)[0]


def test_nothing_readable_ends_with_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 images of .* can be read; a.png: cannot"):
        ImageSet(tmp_path)[0]


def test_missing_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(DataError, match="must be a folder or a .zip file, got nothing there"):
        ImageSet(tmp_path / "absent")
    with pytest.raises(DataError, match=r"must hold images \(.jpg.*got none"):
        ImageSet(tmp_path)


def test_relative_sources_are_also_found_below_the_data_root(folder, monkeypatch):
    monkeypatch.setenv("POTSTILL_DATA", str(folder.parent))
    assert len(ImageSet(folder.name)) == 12
    assert image_path("no/such/images") == folder.parent / "no/such/images"
    assert image_path(folder / "absent") == folder / "absent"


def test_keyed_transforms_draw_from_their_key_alone():
    def noisy(image):
        return image + torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002

    augment = keyed(noisy)
    states = torch.get_rng_state(), random.getstate()
    one = augment(0.0, generator("k", 1))
    torch.testing.assert_close(torch.get_rng_state(), states[0], rtol=0, atol=0)
    assert random.getstate() == states[1]
    torch.rand(5), np.random.rand(3), random.random()  # noqa: NPY002
    assert augment((0.0, 4), generator("k", 1)) == (one, 4)
    assert augment(0.0, generator("k", 2)) != one


def test_the_first_folder_is_the_class_and_hidden_files_are_none(folder):
    (folder / "cat" / "black").mkdir()
    (folder / "cat" / "0.png").rename(folder / "cat" / "black" / "0.png")
    (folder / "cat" / "._1.png").write_bytes(b"left by a file manager")
    (folder / ".thumbs").mkdir()
    Image.new("RGB", (12, 12)).save(folder / ".thumbs" / "a.png")
    images = ImageSet(folder, labels=True)
    assert images.classes == ("cat", "dog")
    assert images.targets == [0] * 6 + [1] * 6


def test_linked_folders_are_read_once(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "owl").mkdir()
    Image.new("RGB", (12, 12)).save(other / "owl" / "a.png")
    (folder / "owl").symlink_to(other / "owl")
    (folder / "dog" / "loop").symlink_to(folder)
    images = ImageSet(folder, labels=True)
    assert images.classes == ("cat", "dog", "owl")
    assert len(images) == 13


def test_a_test_set_is_numbered_by_the_training_classes(folder, tmp_path_factory):
    train = ("bird", "cat", "dog")
    assert ImageSet(folder, labels=True, classes=train).targets == [1] * 6 + [2] * 6
    assert load_images(folder, classes=train).labels.tolist() == [1] * 6 + [2] * 6
    (folder / "dog").rename(folder / "Dog")
    for read in (partial(ImageSet, labels=True), load_images):
        with pytest.raises(DataError, match="got 'Dog'; did you mean 'dog'"):
            read(folder, classes=train)


def test_deep_pixels_become_bytes_or_are_skipped_by_name(tmp_path):
    deep = np.linspace(0, 65_535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "b.tif")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "c.tif")
    images = ImageSet(tmp_path)
    for index in (0, 1):
        found = np.asarray(images[index])[..., 0]
        assert np.abs(found.astype(float) - deep / 257).max() <= 0.5
    images[2]
    assert "F values from 0.0 to 65535.0 have no known range" in images.broken["c.tif"]


def test_a_picture_that_is_too_large_is_skipped(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(
        DataError, match="none of the 12 images of .* can be read; cat/0.png: Image size"
    ):
        ImageSet(folder)[0]


def _tar(folder, path):
    with tarfile.open(path, "w") as archive:
        for index, image in enumerate(sorted(folder.rglob("*.png"))):
            label = str(10 * (image.parent.name == "dog")).encode()
            for suffix, content in (
                (".png", image.read_bytes()),
                (".cls", label),
                (".json", b"{}"),
            ):
                about = tarfile.TarInfo(f"{index:04}{suffix}")
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))


def _table(folder):
    datasets = pytest.importorskip("datasets")
    images = sorted(folder.rglob("*.png"))
    kinds = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["dog", "cat"])
    )
    rows = {"image": [str(p) for p in images], "label": [p.parent.name for p in images]}
    return datasets.Dataset.from_dict(rows, features=kinds)


@pytest.mark.parametrize(
    ("kind", "classes"),
    [("tar", ("0", "10")), ("shards", ("0", "10")), ("parquet", ("dog", "cat")),
     ("saved", ("dog", "cat")), ("txt", ("cat", "dog")), ("csv", ("cat", "dog"))],
)  # fmt: skip
def test_archives_tables_and_lists_give_the_same_images(folder, tmp_path_factory, kind, classes):
    other = tmp_path_factory.mktemp(kind)
    source = other / f"all.{kind}"
    if kind in ("tar", "shards"):
        source = other / "all-0.tar" if kind == "tar" else other
        for number, name in enumerate(("cat", "dog") if kind == "shards" else [""]):
            _tar(folder / name, other / f"all-{number}.tar")
    elif kind == "parquet":
        _table(folder).to_parquet(source)
    elif kind == "saved":
        _table(folder).save_to_disk(source)
    else:
        mark = "," if kind == "csv" else "\t"
        paths = sorted(folder.rglob("*.png"))
        lines = [f"{os.path.relpath(p, other)}{mark}{p.parent.name}" for p in paths]
        source.write_text("\n".join(["path,class"] * (kind == "csv") + lines))
    plain = ImageSet(folder, labels=True)
    found = pickle.loads(pickle.dumps(ImageSet(source, labels=True)))
    assert (len(found), found.classes) == (12, classes)
    for index in (0, 5, 6, 11):
        assert np.array_equal(np.asarray(found[index][0]), np.asarray(plain[index][0]))
        expected = plain.classes[plain[index][1]]
        own = found.classes[found[index][1]]
        assert own == (expected if classes[0] != "0" else {"cat": "0", "dog": "10"}[expected])
    if kind == "shards":
        assert len(ImageSet(other / "all-*.tar")) == 12


@pytest.mark.parametrize(("channels", "shape"), [(1, (12, 12)), (4, (12, 12, 4))])
def test_images_of_other_channels(folder, channels, shape):
    images = ImageSet(folder, channels=channels)
    assert np.asarray(images[0]).shape == shape
    held = ResidentImages.of(images, 4, ((0.5,) * channels, (0.5,) * channels))
    assert held(0, 0, 1)[0].shape == (4, channels, 12, 12)
    with pytest.raises(ConfigError, match="channels must be 1, 3 or 4, got 2"):
        ImageSet(folder, channels=2)
