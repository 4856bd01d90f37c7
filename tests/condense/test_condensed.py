"""What is written, what is read again, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.condense import Condensed, Pool, Teacher, load_pool, make_network
from potstill.core.errors import ConfigError, DataError


def full_set(pool: Pool, **more) -> Condensed:
    rows = torch.tensor([0, 2, 3])
    torch.manual_seed(0)
    made = dict(
        logits=torch.randn(3, 2), lr=0.0123456789, baseline=torch.tensor([[1, 0, 4]]),
        baseline_logits=torch.randn(1, 3, 2),
    )  # fmt: skip
    return dataclasses.replace(Condensed.of(pool, rows, method="datm"), **{**made, **more})


def test_it_is_read_as_it_was_written(tmp_path, pool_of) -> None:
    network = make_network("convnet-1-2-batch", 2, (3, 8, 8))
    teacher = Teacher("convnet-1-2-batch", network.eval(), 3.0)
    before = full_set(pool_of((3, 3)), teacher=teacher)
    before.save(tmp_path / "set")
    again = Condensed.load(tmp_path / "set")
    for name in ("images", "labels", "logits", "rows", "baseline", "baseline_logits"):
        assert torch.equal(getattr(again, name), getattr(before, name)), name
    assert (again.lr, again.classes, again.statistics) == (before.lr, ("a", "b"), before.statistics)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again.teacher.network(x), teacher.network(x), rtol=0, atol=0)
    assert again.teacher.temperature == 3
    before.save(tmp_path / "set")  # again: the same, and nothing left over
    assert len(list((tmp_path / "set").rglob("*.png"))) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm's open files
@pytest.mark.parametrize("names", [("a", "b"), ("zebra", "ape")])
def test_others_read_the_images(tmp_path, pool_of, names) -> None:
    pool = dataclasses.replace(pool_of((2, 3)), classes=names)
    Condensed.of(pool, torch.tensor([0, 1, 3])).save(tmp_path / "set")
    from timm.data import ImageDataset

    found = ImageDataset(str(tmp_path / "set" / "images"))
    assert [label for _, label in found] == [0, 0, 1]
    for row, (image, _) in zip((0, 1, 3), found, strict=True):
        array = np.asarray(image.convert("RGB"))
        assert np.array_equal(array, pool.pixels[row].permute(1, 2, 0).numpy())


def test_a_set_that_was_not_written_to_its_end_is_refused(tmp_path, pool_of) -> None:
    found = full_set(pool_of((3, 3)))
    folder = found.save(tmp_path / "set")
    about = folder / "condensed.json"
    text = about.read_text()
    about.write_text(text.replace(json.loads(text)["digest"], "0" * 64))
    with pytest.raises(DataError, match="must belong together"):
        Condensed.load(folder)
    about.unlink()
    with pytest.raises(DataError, match="was it written to its end"):
        Condensed.load(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="must be empty or hold a condensed set"):
        found.save(tmp_path / "other")
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        Condensed(torch.zeros(1, 2, 4, 4), torch.tensor([0]), ("a",), ((0, 0), (1, 1))).save(
            tmp_path / "two"
        )


def test_a_read_only_folder_is_named(tmp_path, pool_of, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "set"))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(DataError, match="could not write .*set"):
        full_set(pool_of((3, 3))).save(tmp_path / "set")


def test_pools_are_read_as_people_have_them(tmp_path) -> None:
    for name, value in (("cat/a.png", 10), ("cat/b.png", 20), ("dog/c.png", 30)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 6), (value,) * 3).save(tmp_path / name)
    pool = load_pool(tmp_path)
    assert (pool.classes, pool.labels.tolist()) == (("cat", "dog"), [0, 0, 1])
    assert abs(float(pool.normalized(torch.arange(3)).mean())) < 1e-5
    items = [(torch.full((1, 4, 4), 7, dtype=torch.uint8), 0), (torch.ones(1, 4, 4).byte(), 1)]
    assert Pool.of(items).pixels.dtype == torch.uint8
    grey = [(Image.new("L", (4, 4), 3), 0), (Image.new("L", (4, 4), 5), 1)]
    assert Pool.of(grey).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 4), 1)], r"one size .* at 1 \[1, 5, 4\]"),
        ([(torch.zeros(1, 4, 4), 0), (torch.zeros(3, 4, 4), 1)], r"got \[1, 4, 4\] and at 1 \[3,"),
        ([(torch.full((1, 4, 4), 2.0), 0)], r"in \[0, 1\], got values from 2 to 2"),
        ([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 4), 2)], "class '1' must have images"),
        ([(torch.zeros(1, 4, 4), -1)], "from 0 to"),
        ([torch.zeros(1, 4, 4)], "image, class index"),
        ([(torch.zeros(4, 4), 0)], r"\[channels height width\]"),
        ([], "must have items"),
    ],
)
def test_data_that_do_not_fit_are_named(items, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Pool.of(items)


def test_folders_of_mixed_images_are_named(tmp_path) -> None:
    for name, side in (("cat/a.png", 6), ("dog/b.png", 7)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (side, side)).save(tmp_path / name)
    with pytest.raises(ConfigError, match=r"6 x 6 \(cat/a\.png\) and 7 x 7 \(dog/b\.png\)"):
        load_pool(tmp_path)


def test_an_empty_folder_of_a_class_is_no_class(tmp_path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (6, 6)).save(tmp_path / "cat" / "a.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="a folder for each class, two at least"):
        load_pool(tmp_path)


def test_networks_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match="write convnet-3-128-instance"):
        make_network("convnet-3-128", 10, (3, 32, 32))
    with pytest.raises(ConfigError, match="unknown norm 'batches'; did you mean 'batch'"):
        make_network("convnet-3-128-batches", 10, (3, 32, 32))
    with pytest.raises(ConfigError, match="sides of at least 16 pixels for 4 blocks, got 8 x 8"):
        make_network("convnet-4-8-instance", 10, (3, 8, 8))
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        make_network("resnet81", 10, (3, 32, 32))
    network = make_network("resnet10t", 4, (1, 32, 32))
    assert network.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 4)
