"""Encodings against definitions written out another way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potstill.core.errors import CheckpointError, ConfigError, DataError, ShapeError
from potstill.nerf import HashGrid, Levels, frequencies, harmonics
from potstill.nerf.backends import ENCODERS
from potstill.nerf.backends.reference import corner_rows


def oracle(x, table, levels):
    """Naive hash grid: python integers, one point, level and corner at a time, float64 sums."""
    out = np.zeros((len(x), levels.width))
    features = levels.features
    for i, point in enumerate(x):
        for level, scale in enumerate(levels.scale):
            n, rows = levels.resolution[level], levels.rows[level]
            # exact product and sum in float64, then one rounding: fma
            p = [np.float32(np.float64(v) * np.float64(np.float32(scale)) + 0.5) for v in point]
            g = [math.floor(v) for v in p]
            f = [float(v) - low for v, low in zip(p, g, strict=True)]
            for corner in range(8):
                d = [corner & 1, corner >> 1 & 1, corner >> 2]
                v = [(a + b) % 2**32 for a, b in zip(g, d, strict=True)]
                if n**3 <= rows:
                    row = (v[0] + v[1] * n + v[2] * n * n) % 2**32 % rows
                else:
                    h = v[0] ^ (v[1] * 2654435761 % 2**32) ^ (v[2] * 805459861 % 2**32)
                    row = h % rows
                w = math.prod(f[a] if d[a] else 1 - f[a] for a in range(3))
                at = levels.offset[level] + row
                out[i, level * features : (level + 1) * features] += w * table[at]
    return out


def points(count, seed=0):
    """Random points, the corners of the cube, and points outside of it."""
    x = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))
    special = torch.tensor([[0.0] * 3, [1.0] * 3, [1 - 1e-7] * 3, [0.5] * 3, [-0.1, 1.2, 0.3]])
    return torch.cat([x, special])


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("log2_rows", [10, 15])
def test_hash_grid_is_the_naive_sum(backend, features, log2_rows):
    levels = Levels.geometric(5, features, log2_rows, 4, 200)
    grid = HashGrid(levels, backend)
    with torch.no_grad():
        grid.table.uniform_(-1, 1)
    x = points(40)
    expected = oracle(x.numpy(), grid.table.detach().double().numpy(), levels)
    assert np.abs(grid(x).detach().numpy() - expected).max() <= 1e-6


def test_rows_are_the_golden_ones():
    # written once from tiny-cuda-nn's definition, by hand: x + 8y + 64z, and the xor of primes
    levels = Levels.geometric(2, 2, 12, 8, 64)
    cell = torch.tensor([[1, 2, 3], [6, 0, 5]])
    assert corner_rows(cell, levels, 0)[0].tolist() == [209, 210, 217, 218, 273, 274, 281, 282]
    mask = levels.rows[1] - 1
    hashed = [
        (x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) & mask
        for z in (3, 4)
        for y in (2, 3)
        for x in (1, 2)
    ]
    assert (corner_rows(cell, levels, 1)[0] - levels.offset[1]).tolist() == hashed
    assert hashed == [1500, 1503, 2989, 2990, 3383, 3380, 838, 837]


def test_level_table_is_tiny_cuda_nns():
    levels = Levels.geometric(16, 2, 19, 16, 2048)
    assert levels.resolution[0] == 16
    assert levels.rows[0] == 4096
    assert levels.resolution[-1] in (2048, 2049)
    assert levels.rows[-1] == 2**19
    assert all(offset % 8 == 0 for offset in levels.offset)
    assert Levels.from_dict(levels.as_dict()) == levels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels must be 1 to 32"),
        ({"features": 3}, "features must be 1, 2, 4 or 8, got 3"),
        ({"base": 64, "finest": 32}, "base from 2 to finest"),
    ],
)
def test_impossible_levels_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Levels.geometric(**options)


def test_a_damaged_level_table_is_refused():
    with pytest.raises(CheckpointError, match="damaged"):
        Levels.from_dict({"features": 2, "scale": [1.0]})


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_bad_points_are_errors_and_odd_tensors_work(backend):
    grid = HashGrid(Levels.geometric(3, 2, 8, 4, 16), backend)
    for bad in (torch.zeros(4, 2), torch.zeros(4, 3, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(ShapeError, match="x must be floating"):
            grid(bad)
    with pytest.raises(ShapeError, match="must be on cpu like the table, got meta"):
        grid(torch.zeros(2, 3, device="meta"))
    with pytest.raises(DataError, match="x must be finite, got 2 of 4 points that are not"):
        grid(torch.tensor([[0.1] * 3, [0.2, torch.nan, 0.0], [torch.inf, 0.0, 0.0], [0.3] * 3]))
    assert grid(torch.zeros(0, 3)).shape == (0, 6)
    x = torch.rand(7, 3)
    assert torch.equal(grid(x.double()), grid(x))
    assert torch.equal(grid(x.T.contiguous().T), grid(x))


def test_points_outside_the_cube_wrap_alike():
    """The contract is to mask them; if not, backends agree and none reads beyond the table."""
    levels = Levels.geometric(6, 2, 10, 4, 64)
    draw = torch.Generator().manual_seed(0)
    faces = torch.tensor([0.0, 1.0, 1 - 2**-24, -(2**-24)])
    x = torch.cat([torch.cartesian_prod(faces, faces, faces), torch.randn(200, 3, generator=draw)])
    table = torch.rand(levels.total, 2, generator=draw)
    torch.testing.assert_close(
        ENCODERS["native"].run(x, table, levels),
        ENCODERS["torch"].run(x, table, levels),
        rtol=0,
        atol=1e-6,
    )


def test_harmonics_are_scipys():
    from scipy.special import sph_harm_y

    d = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=1)
    theta, phi = torch.acos(d[:, 2]).numpy(), torch.atan2(d[:, 1], d[:, 0]).numpy()
    ours = harmonics(3.7 * d).numpy()
    index = 0
    for band in range(4):
        for m in range(-band, band + 1):
            value = sph_harm_y(band, abs(m), theta, phi)
            expected = (
                value.real if m == 0 else math.sqrt(2) * (value.real if m > 0 else value.imag)
            )
            assert np.abs(ours[:, index] - expected).max() < 1e-7, (band, m)
            index += 1


def test_harmonics_refuse_zero_vectors():
    with pytest.raises(ShapeError, match="must not be zero, got 1 zero vectors"):
        harmonics(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
    with pytest.raises(ConfigError, match="degree must be 1, 2, 3 or 4"):
        harmonics(torch.ones(1, 3), degree=5)


@given(st.integers(0, 6), st.booleans())
def test_frequencies_are_sines_and_cosines(bands, include_pi):
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    out = frequencies(x, bands, include_pi)[0].tolist()
    factor = math.pi if include_pi else 1.0
    expected = [0.3, -0.7]
    for k in range(bands):
        expected += [math.sin(2**k * factor * v) for v in (0.3, -0.7)]
        expected += [math.cos(2**k * factor * v) for v in (0.3, -0.7)]
    assert out == pytest.approx(expected, abs=1e-12)
