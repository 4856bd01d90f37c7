import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.acm import CIFAR10, load_images
from potstill.core.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "set"


def test_folders_are_classes_and_zips_are_folders(folder, tmp_path):
    found = load_images(folder)
    assert found.names == ("cat/a.png", "cat/b.png", "dog/c.png")
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1]
    assert found.pixels.shape == (3, 3, 6, 8)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, f"inner/{path.relative_to(folder)}")
    again = load_images(tmp_path / "set.zip" / "inner")
    assert torch.equal(again.pixels, found.pixels)
    assert again.names == found.names
    assert load_images(folder / "cat").classes == ()
    assert load_images(folder / "cat").labels.tolist() == [-1, -1]


def test_normalised_batches(folder):
    found = load_images(folder, statistics=CIFAR10)
    (images, labels), _ = found.batches(2)
    assert labels.tolist() == [0, 0]
    mean, std = CIFAR10
    torch.testing.assert_close(images[1, 2], (found.pixels[1, 2].float() / 255 - mean[2]) / std[2])


def test_draws_are_a_pure_function_and_cover_an_epoch(folder):
    found = load_images(folder)
    draw = found.draws(1, seed=3, augment=False)
    seen = torch.cat([draw(step, 0, 1)[0] for step in range(3)])
    everything = found.normalized(found.pixels)
    order = [int((seen[i] - everything).flatten(1).abs().sum(1).argmin()) for i in range(3)]
    assert sorted(order) == [0, 1, 2]
    assert torch.equal(draw(1, 0, 1)[0], seen[1:2])
    augmented = found.draws(2, seed=3)
    assert torch.equal(augmented(4, 0, 1)[0], augmented(4, 0, 1)[0])
    both = found.take(torch.tensor([0, 1, 2, 0])).draws(2, augment=False)
    one = found.take(torch.tensor([0, 1, 2, 0])).draws(4, augment=False)
    ranks = torch.cat([both(0, rank, 2)[0] for rank in range(2)])
    torch.testing.assert_close(ranks.sum(0), one(0, 0, 1)[0].sum(0))


def test_moves_are_shifts_and_flips():
    from potstill.acm.images import _moved

    pixels = torch.arange(1, 13, dtype=torch.uint8).reshape(1, 1, 3, 4).expand(200, 3, 3, 4)
    moved = _moved(pixels, 1, torch.Generator().manual_seed(0))
    source = pixels[0, 0]
    padded = torch.zeros(5, 6, dtype=torch.uint8)
    padded[1:4, 1:5] = source
    possible = []
    for row in range(3):
        for column in range(3):
            window = padded[row : row + 3, column : column + 4]
            possible += [window, window.flip(1)]
    found = {tuple(window.flatten().tolist()) for window in moved[:, 0]}
    assert found <= {tuple(window.flatten().tolist()) for window in possible}
    assert len(found) == 18


def test_size_crops_the_centre(folder):
    assert load_images(folder, size=4).pixels.shape == (3, 3, 4, 4)


def test_split_is_disjoint(folder):
    a, b = load_images(folder).split(0.67, seed=1)
    assert sorted(a.names + b.names) == ["cat/a.png", "cat/b.png", "dog/c.png"]


def test_bad_input(folder, tmp_path):
    with pytest.raises(DataError, match=r"must be a folder or a \.zip file, got nothing there"):
        load_images(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must hold images .* got none"):
        load_images(tmp_path / "empty")
    with pytest.raises(ConfigError, match="size must be from 1 to the 3 images, got 4"):
        load_images(folder).draws(4)
    Image.new("RGB", (5, 5)).save(folder / "cat" / "z.png")
    with pytest.raises(ConfigError, match=r"must have one size, got several; pass size="):
        load_images(folder)
    (folder / "dog" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"dog/broken\.jpg .* must be a readable image"):
        load_images(folder)
