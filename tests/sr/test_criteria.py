"""Criteria against naive loops and by their invariants."""

import pytest
import torch

from potstill.core.errors import ConfigError, ShapeError
from potstill.core.testing import assert_criterion
from potstill.sr import contrastive_ratio, spatial_affinity, wavelet_l1


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_they_are_criteria():
    assert_criterion(spatial_affinity, rand(2, 4, 3, 5), rand(2, 6, 3, 5, seed=1))
    assert_criterion(wavelet_l1, rand(2, 3, 8, 12), rand(2, 3, 8, 12, seed=1))
    images = [rand(3, 3, 6, 6, seed=k) for k in range(3)]
    assert_criterion(contrastive_ratio, *images, constant=(1, 2))


def test_affinity_equals_loops_over_pairs_of_pixels():
    f_s, f_t = rand(1, 4, 2, 3), rand(1, 5, 2, 3, seed=1)

    def affinity(f):
        pixels = f[0].flatten(1).T
        return torch.stack(
            [torch.stack([torch.cosine_similarity(a, b, dim=0) for b in pixels]) for a in pixels]
        )

    expected = (affinity(f_s) - affinity(f_t)).abs().mean()
    torch.testing.assert_close(spatial_affinity(f_s, f_t), expected)


def test_affinity_ignores_the_length_of_features_and_pools_large_maps():
    f = rand(1, 4, 40, 50)
    assert spatial_affinity(f, 7 * f) < 1e-6
    small = torch.nn.functional.adaptive_avg_pool2d(f, (8, 8))
    other = rand(1, 4, 8, 8, seed=1)
    large = other.repeat_interleave(5, 2).repeat_interleave(7, 3)[..., :50]
    found = spatial_affinity(f, large, size=8)
    pooled = torch.nn.functional.adaptive_avg_pool2d(large, (8, 8))
    torch.testing.assert_close(found, spatial_affinity(small, pooled))


def test_wavelet_by_hand():
    sr = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    assert wavelet_l1(sr, torch.zeros_like(sr), levels=1) == 0.5  # each of three bands: 1/2


def test_wavelet_energy_is_that_of_the_image():
    x = rand(1, 1, 8, 8)
    a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    bands = [a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d]
    assert sum(float((band / 2).square().sum()) for band in bands) == pytest.approx(
        float(x.square().sum())
    )


def test_wavelet_ignores_what_is_smooth():
    x = rand(1, 3, 16, 16)
    assert wavelet_l1(x + 0.3, x) < 1e-6
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    noise = x - 0.5
    assert wavelet_l1(x + 0.1 * ramp, x) < 0.2 * wavelet_l1(x + 0.1 * noise, x)


def test_contrast_falls_towards_the_teacher_and_away_from_the_blur():
    target, blurred = rand(2, 3, 8, 8), rand(2, 3, 8, 8, seed=1)
    near = contrastive_ratio(target + 0.01, target, blurred)
    far = contrastive_ratio(target + 0.1, target, blurred)
    assert 0 == contrastive_ratio(target, target, blurred) < near < far
    assert contrastive_ratio(target[:1] + 0.1, target[:1], blurred[:1]) > 0


def test_bad_input():
    x = rand(1, 3, 8, 8)
    with pytest.raises(ShapeError, match="f_t must be \\[8, 8\\] pixels like f_s, got \\[4, 4\\]"):
        spatial_affinity(x, rand(1, 3, 4, 4))
    with pytest.raises(ShapeError, match="of one batch"):
        spatial_affinity(x, rand(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="levels must be at least 1, got 0"):
        wavelet_l1(x, x, levels=0)
    with pytest.raises(ShapeError, match="sides of at least 16"):
        wavelet_l1(x, x, levels=4)
    with pytest.raises(ShapeError, match="of one shape"):
        contrastive_ratio(x, x, x[..., :4])
