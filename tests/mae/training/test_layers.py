from __future__ import annotations

import pytest

from potstill.core.errors import ConfigError
from potstill.mae import layer_map


@pytest.mark.parametrize(
    ("layers", "depths", "pairs"),
    [
        (0.75, (12, 24), [(8, 17)]),
        (0.75, (4, 4), [(2, 2)]),
        (0.75, (6, 12), [(4, 8)]),  # 4.5 is rounded up, whatever Python's round does
        (1.0, (12, 24), [(11, 23)]),
        (0.01, (12, 24), [(0, 0)]),
        (3, (12, 24), [(3, 3)]),
        ([1.0, 0.5], (12, 24), [(5, 11), (11, 23)]),
        ([(8, 17), (11, 23)], (12, 24), [(8, 17), (11, 23)]),
        ([[8, 17]], (12, 24), [(8, 17)]),
        ([0.5, 11], (12, 12), [(5, 5), (11, 11)]),
    ],
)
def test_pairs(layers, depths, pairs):
    assert layer_map(layers, *depths) == pairs


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (12, "student has blocks 0 to 11, got 12"),
        ([(3, 24)], "teacher has blocks 0 to 23, got 24"),
        (-1, "student has blocks 0 to 11, got -1"),
        (1.5, r"share must be in \(0, 1\], got 1.5"),
        (0.0, r"share must be in \(0, 1\], got 0.0"),
        ([(1, 2, 3)], r"a pair \(student, teacher\), got \[1, 2, 3\]; name as many student"),
        ([], "at least one block, got none"),
        ([0.75, (8, 17)], "once, got"),
    ],
)
def test_bad_layers_are_refused(layers, message):
    with pytest.raises(ConfigError, match=message):
        layer_map(layers, 12, 24)
