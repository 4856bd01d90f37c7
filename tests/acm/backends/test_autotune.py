import time

import pytest

from potstill.acm.backends.autotune import Autotuner


def test_the_fastest_way_is_taken_and_remembered():
    calls = {"slow": 0, "fast": 0}

    def slow():
        calls["slow"] += 1
        time.sleep(0.02)

    def fast():
        calls["fast"] += 1

    tuner = Autotuner(rounds=3)
    assert tuner.choose("a", {"slow": slow, "fast": fast}) == "fast"
    assert calls == {"slow": 3, "fast": 3}
    assert tuner.choose("a", {"slow": slow, "fast": fast}) == "fast"
    assert calls == {"slow": 3, "fast": 3}
    tuner.choose("b", {"slow": slow, "fast": fast})
    assert calls["slow"] == 6


def test_a_way_that_does_not_fit_the_device_is_skipped():
    def large():
        raise MemoryError("262144 bytes of shared memory, the device has 166912")

    tuner = Autotuner(skip=(MemoryError,))
    assert tuner.choose("a", {"large": large, "small": lambda: None}) == "small"
    with pytest.raises(MemoryError, match="the device has 166912"):
        tuner.choose("b", {"large": large})
    with pytest.raises(MemoryError):  # an error that nobody expects is never hidden
        Autotuner().choose("a", {"large": large, "small": lambda: None})
