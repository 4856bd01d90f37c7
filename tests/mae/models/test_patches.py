from __future__ import annotations

import math

import pytest
import torch

from potstill.core.errors import ConfigError, ShapeError
from potstill.mae import (
    denormalize_patches,
    normalize_patches,
    patchify,
    sincos_positions,
    unpatchify,
)


def test_patchify_places_each_pixel_where_the_definition_says():
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, (4, 2))
    assert patches.shape == (2, 12, 24)
    for row, column, y, x, channel in [(0, 0, 0, 0, 0), (1, 4, 3, 1, 2), (0, 5, 2, 0, 1)]:
        value = patches[:, row * 6 + column, (y * 2 + x) * 3 + channel]
        torch.testing.assert_close(value, images[:, channel, row * 4 + y, column * 2 + x])


@pytest.mark.parametrize("patch", [(4, 4), (8, 4), (2, 6)])
def test_unpatchify_is_the_inverse(patch):
    images = torch.randn(2, 3, 16, 24)
    grid = (16 // patch[0], 24 // patch[1])
    torch.testing.assert_close(unpatchify(patchify(images, patch), grid, patch), images)


def test_images_that_are_not_whole_patches_are_refused():
    with pytest.raises(
        ShapeError, match=r"divisible by the patch \(16, 16\), got \[1, 3, 30, 32\]"
    ):
        patchify(torch.zeros(1, 3, 30, 32), (16, 16))
    with pytest.raises(ShapeError, match=r"must be \[B 4 C\*64\], got \[1, 5, 192\]"):
        unpatchify(torch.zeros(1, 5, 192), (2, 2), (8, 8))


def test_normalized_patches_and_back():
    patches = torch.randn(2, 5, 48) * 3 + 2
    normalized = normalize_patches(patches)
    torch.testing.assert_close(normalized.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.var(-1), torch.ones(2, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(denormalize_patches(normalized, patches), patches)


def test_flat_patch_stays_finite():
    assert bool(torch.isfinite(normalize_patches(torch.ones(1, 1, 12))).all())


def test_positions_against_the_formula():
    rows, columns, width = 3, 5, 16
    table = sincos_positions((rows, columns), width, prefix=2)
    assert table.shape == (1, 2 + rows * columns, width)
    torch.testing.assert_close(table[0, :2], torch.zeros(2, width))
    for y in range(rows):
        for x in range(columns):
            expected = [
                wave(place * 10000 ** (-i / 4))
                for place in (x, y)
                for wave in (math.sin, math.cos)
                for i in range(4)
            ]
            row = table[0, 2 + y * columns + x]
            torch.testing.assert_close(row, torch.tensor(expected), atol=1e-5, rtol=0)


def test_width_not_divisible_by_four_is_refused():
    with pytest.raises(ConfigError, match="divisible by 4, got 30"):
        sincos_positions((2, 2), 30)
