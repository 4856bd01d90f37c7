"""Patches: aligned, reproducible, in eight orientations."""

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.core.engine import Shard
from potstill.core.errors import ConfigError, DataError
from potstill.sr import Pair, Patches, degrade, imresize, prepare
from potstill.sr.images.reading import find_photographs


def test_patches_are_aligned():
    # hr is lr with every pixel doubled, so any misalignment or different turn shows
    lr = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    pairs = [Pair(lr, lr.repeat(2, axis=0).repeat(2, axis=1))]
    small, large = Patches(pairs, patch=7, batch=64)(0, 0, 1)
    torch.testing.assert_close(large[..., ::2, ::2], small)
    torch.testing.assert_close(large[..., 1::2, 1::2], small)


def test_all_eight_orientations_occur():
    lr = np.zeros((4, 4, 3), np.uint8)
    lr[0, 0], lr[0, 3], lr[3, 0] = 10, 20, 30
    pairs = [Pair(lr, lr)]
    small, _ = Patches(pairs, patch=4, batch=200)(0, 0, 1)
    assert len({tuple(image.flatten().tolist()) for image in small}) == 8


def test_batches_are_a_function_of_seed_step_and_rank(photograph):
    pairs = degrade([photograph], 2)
    draw = Patches(pairs, patch=6, batch=4, seed=1)
    torch.testing.assert_close(draw(3, 0, 2)[0], draw(3, 0, 2)[0])
    assert not torch.equal(draw(3, 0, 2)[0], draw(3, 1, 2)[0])
    assert not torch.equal(draw(3, 0, 2)[0], draw(4, 0, 2)[0])
    assert not torch.equal(draw(3, 0, 2)[0], Patches(pairs, patch=6, batch=4, seed=2)(3, 0, 2)[0])


def test_large_images_are_drawn_more_often():
    white, black = np.full((24, 24, 3), 255, np.uint8), np.zeros((44, 44, 3), np.uint8)
    small, _ = Patches([Pair(white, white), Pair(black, black)], patch=5, batch=1000)(0, 0, 1)
    share = float(small.flatten(1).mean(dim=1).mean())
    assert share == pytest.approx(20**2 / (20**2 + 40**2), abs=0.04)


def test_degrade_is_matlabs_and_zooms(photograph):
    pair, half = degrade([photograph[:47]], 3, zooms=(1.0, 0.5))
    assert pair.hr.shape == (45, 60, 3)
    np.testing.assert_array_equal(pair.lr, imresize(pair.hr, 1 / 3))
    assert half.hr.shape == (24, 30, 3)


def test_prepare_maps_files_and_reuses_them(tmp_path, photograph):
    folder = tmp_path / "DIV2K_train_HR"
    folder.mkdir()
    (tmp_path / "DIV2K_valid_HR").mkdir()
    Image.fromarray(photograph).save(folder / "0001.png")
    Image.fromarray(photograph).save(tmp_path / "DIV2K_valid_HR" / "0801.png")
    (pair,) = prepare(tmp_path, 2, tmp_path / "cache")
    assert isinstance(pair.hr, np.memmap)
    np.testing.assert_array_equal(pair.lr, imresize(photograph, 0.5))
    files = sorted((tmp_path / "cache").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    prepare(tmp_path, 2, tmp_path / "cache")
    assert [file.stat().st_mtime_ns for file in files] == times


def test_bad_input(tmp_path, photograph):
    with pytest.raises(ConfigError, match="patch must fit into an image, got 100"):
        Patches(degrade([photograph], 2), patch=100)
    with pytest.raises(ConfigError, match="zooms in \\(0, 1\\]"):
        degrade([photograph], 2, zooms=(2.0,))
    with pytest.raises(DataError, match="got none"):
        find_photographs(tmp_path)
    with pytest.raises(DataError, match="got nothing there"):
        find_photographs(tmp_path / "absent")


def test_a_source_of_batches_that_knows_its_photographs(photograph):
    pairs = degrade([photograph], 2)
    patches = Patches(pairs, patch=6, batch=4, seed=1)
    shard = Shard(seed=0, rank=1, world=2)
    lr, hr = next(patches.stream(3, shard))
    torch.testing.assert_close((lr, hr), patches(3, 1, 2))
    assert patches.steps_per_epoch(1) is None
    others = [
        Patches(pairs, patch=7, batch=4, seed=1),
        Patches(pairs, patch=6, batch=4, seed=2),
        Patches(degrade([255 - photograph], 2), patch=6, batch=4, seed=1),
    ]
    assert len({source.fingerprint() for source in (patches, *others)}) == 4
    assert patches.fingerprint() == Patches(pairs, patch=6, batch=4, seed=1).fingerprint()


def test_two_processes_see_what_one_would(photograph):
    pairs = degrade([photograph, photograph[:40]], 2)
    one, two = (Patches(pairs, patch=8, batch=batch, seed=3) for batch in (8, 4))
    for rank in range(2):
        for mine, whole in zip(two(5, rank, 2), one(5, 0, 1), strict=True):
            assert torch.equal(mine, whole[rank::2])
