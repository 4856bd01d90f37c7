import time

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
