"""Estimates of memory against what was measured: MiB on top, one thread, each in a fork."""

import pytest

from potstill.sr import IMDN, IMDN_RTC, plan

SMALL, LARGE, TINY = IMDN(2, 32, 4, "bicubic"), IMDN(4), IMDN_RTC()
MEASURED = [
    (SMALL, "none", "none", 384, 157.6),
    (SMALL, "none", "none", 768, 549.8),
    (SMALL, "exact", 128, 384, 122.1),
    (SMALL, "exact", 128, 768, 293.7),
    (SMALL, "exact", 256, 384, 148.4),
    (SMALL, "exact", 256, 768, 362.4),
    (SMALL, "gates", 128, 384, 120.5),
    (SMALL, "gates", 128, 768, 127.1),
    (SMALL, "gates", 256, 384, 125.0),
    (SMALL, "gates", 256, 768, 328.5),
    (LARGE, "none", "none", 256, 143.8),
    (LARGE, "none", "none", 512, 488.9),
    (LARGE, "exact", 128, 256, 123.5),
    (LARGE, "exact", 128, 512, 296.1),
    (LARGE, "exact", 256, 256, 191.4),
    (LARGE, "exact", 256, 512, 392.1),
    (LARGE, "recompute", 128, 256, 112.6),
    (LARGE, "gates", 128, 256, 118.6),
    (LARGE, "gates", 128, 512, 218.0),
    (LARGE, "gates", 256, 256, 162.9),
    (TINY, "exact", 128, 768, 57.8),
    (TINY, "exact", 256, 768, 86.8),
]


@pytest.mark.parametrize(("network", "mode", "tile", "side", "measured"), MEASURED)
def test_estimates_are_within_a_fifth_of_what_was_measured(network, mode, tile, side, measured):
    estimate = plan(network, side, side, tile=tile, tile_mode=mode).bytes / 2**20
    assert 0.8 <= estimate / measured <= 1.25
