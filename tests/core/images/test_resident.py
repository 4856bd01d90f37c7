import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.core.engine.batches import Shard
from potstill.core.engine.source import Source
from potstill.core.errors import ConfigError, DataError
from potstill.core.images import CIFAR10, ImageSet, ResidentImages, load_images
from potstill.core.seed import generator

GRAY = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


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
    pixels = torch.arange(1, 13, dtype=torch.uint8).reshape(1, 1, 3, 4).expand(200, 3, 3, 4)
    batches = ResidentImages(pixels, torch.zeros(200), 200, shift=1, border="zero")
    moved = batches._shift_and_flip(pixels, torch.Generator().manual_seed(0))
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
    with pytest.raises(ConfigError, match=r"one size, got .* and 5 x 5 \(cat/z\.png\)"):
        load_images(folder)
    (folder / "dog" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"dog/broken\.jpg .* must be a readable image"):
        load_images(folder)


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
    with pytest.raises(DataError, match=r"must have one size, got \[\(8, 6\), \(13, 12\)\]"):
        ResidentImages.of(ImageSet(folder), 4, GRAY)
    with pytest.raises(DataError, match="2 images must fill a batch of 4"):
        resident(n=2)


def test_resident_is_a_source_that_resumes_anywhere():
    source = resident()
    assert isinstance(source, Source)
    assert (source.steps_per_epoch(1), source.steps_per_epoch(2)) == (5, 2)
    stream = source.stream(0, Shard(3, 1, 2))
    whole = [next(stream) for _ in range(7)]
    torch.testing.assert_close(next(source.stream(6, Shard(3, 1, 2))), whole[6], rtol=0, atol=0)
    assert source.indices(6, Shard(3, 1, 2)) == whole[6][1].tolist()


def test_resident_follows_the_seed_of_the_run_unless_it_has_its_own():
    free, own = resident(), resident(seed=7)
    order = [next(source.stream(0, Shard(seed)))[1] for source in (free, own) for seed in (7, 8)]
    assert not torch.equal(order[0], order[1])
    assert torch.equal(order[0], order[2])
    assert torch.equal(order[2], order[3])
    assert own.indices(0, Shard(8)) == order[3].tolist()


def test_resident_order_is_pinned():
    """Runs of earlier versions continue with the batches that they would have seen."""
    for seed, step, rank, world in ((0, 0, 0, 1), (5, 8, 1, 2)):
        source = resident(seed=seed)
        epoch, k = divmod(step, 20 // (4 * world))
        order = torch.randperm(20, generator=generator("order", seed, epoch))
        rows = order[k * 4 * world :][rank : 4 * world : world]
        images, targets = source(step, rank, world)
        assert torch.equal(targets, rows)
        drawn, shard = generator("augment", seed, step, 0), Shard(seed, rank, world)
        moved = source._shift_and_flip(source.images[rows], drawn, shard)
        torch.testing.assert_close(images, source.normalized(moved), rtol=0, atol=0)


def test_two_processes_see_what_one_would():
    images = torch.randn(20, 3, 4, 4)
    one, two = (ResidentImages(images, torch.arange(20), size, seed=5, shift=1) for size in (8, 4))
    for step in range(4):
        whole = one(step, 0, 1)
        for rank in range(2):
            for mine, all_of_it in zip(two(step, rank, 2), whole, strict=True):
                assert torch.equal(mine, all_of_it[rank::2])


def test_resident_fingerprint_sees_images_labels_and_options():
    base = {"images": torch.zeros(8, 3, 4, 4, dtype=torch.uint8), "targets": torch.arange(8)}
    others = [
        {"images": base["images"] + 1},
        {"targets": torch.zeros(8)},
        {"statistics": GRAY},
        {"shift": 1},
        {"flip": False},
        {"border": "zero"},
        {"seed": 1},
    ]
    made = [ResidentImages(**{"batch_size": 4, **base, **other}) for other in ({}, {}, *others)]
    found = [source.fingerprint() for source in made]
    assert found[0] == found[1]
    assert len(set(found)) == 1 + len(others)


def test_resident_floats_are_taken_as_they_are():
    images = torch.randn(6, 1, 4, 4)
    source = ResidentImages(images, torch.arange(6), 6, shift=0, flip=False)
    drawn, targets = source(0, 0, 1)
    torch.testing.assert_close(drawn, images[targets], rtol=0, atol=0)


def test_more_processes_than_images_are_refused():
    with pytest.raises(ConfigError, match="6 processes x batch_size 4 exceed the 20 items"):
        resident()(0, 0, 6)
