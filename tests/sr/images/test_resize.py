"""MATLAB's bicubic: a direct float64 transcription of its definition, and the published images."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import ConfigError, ShapeError
from potstill.core.store.data import root
from potstill.core.testing import requires_data
from potstill.sr.images.reading import read_image
from potstill.sr.images.resize import imresize


def kernel(t: float) -> float:
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0


def one_axis(line: list[float], scale: float) -> list[float]:
    """Loops over the definition; indices from 1 as in MATLAB."""
    size, out = len(line), []
    shrink = min(scale, 1)
    for i in range(1, int(np.ceil(scale * size - 1e-9)) + 1):
        u = i / scale + 0.5 * (1 - 1 / scale)
        first = int(np.floor(u - 2 / shrink))
        total = weights = 0.0
        for j in range(first, first + int(np.ceil(4 / shrink)) + 2):
            w = kernel(shrink * (u - j))
            k = (j - 1) % (2 * size)
            total += w * line[k if k < size else 2 * size - 1 - k]
            weights += w
        out.append(total / weights)
    return out


@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), 2, 3, 0.7])
def test_equals_the_definition(scale):
    image = np.random.default_rng(0).random((11, 13))
    rows = np.array([one_axis(list(c), float(scale)) for c in image.T]).T
    expected = np.array([one_axis(list(r), float(scale)) for r in rows])
    np.testing.assert_allclose(imresize(image, scale), expected, rtol=0, atol=1e-12)


@requires_data("sr/Set5")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_published_low_resolution_images_are_reproduced_exactly(scale):
    folder = root() / "sr/Set5"
    files = sorted((folder / "HR").glob("*.png"))
    assert len(files) == 5
    for path in files:
        hr = read_image(path).rgb8()
        h, w = (side - side % scale for side in hr.shape[:2])
        expected = read_image(folder / f"LR/x{scale}/{path.stem}x{scale}.png").rgb8()
        assert np.count_nonzero(imresize(hr[:h, :w], Fraction(1, scale)) != expected) == 0


def test_rounding_after_each_pass_matters():
    image = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    once = np.clip(np.floor(imresize(image.astype(float), 0.5) + 0.5), 0, 255)
    assert np.count_nonzero(imresize(image, 0.5) != once) > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([0.5, 1 / 3, 0.25, 2, 3, 4]))
def test_sizes_and_constants(h, w, scale):
    out = imresize(np.full((h, w, 3), 77, np.uint8), scale)
    ratio = Fraction(scale).limit_denominator(100)
    assert out.shape == (-(-h * ratio.numerator // ratio.denominator), -(-w * ratio // 1), 3)
    assert (out == 77).all()


def test_identity_and_tensors():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(imresize(image, 1), image)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    np.testing.assert_array_equal(
        imresize(tensor, 0.5).numpy(), imresize(image, 0.5).transpose(2, 0, 1)
    )


def test_bad_input():
    with pytest.raises(ConfigError, match="scale must be positive, got 0"):
        imresize(np.zeros((4, 4)), 0)
    with pytest.raises(ShapeError, match="must be an array"):
        imresize(np.zeros((2, 4, 4, 3)), 2)
    with pytest.raises(ShapeError, match="uint8, uint16 or floating"):
        imresize(np.zeros((4, 4), np.int32), 2)
