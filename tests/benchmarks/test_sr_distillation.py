"""What may be called a gain, and that an interrupted comparison goes on."""

from dataclasses import replace

import pytest

from benchmarks.sr import distillation


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([0.10, 0.11, 0.12], "gain"),
        ([-0.10, -0.11, -0.12], "loss"),
        ([0.01, 0.20, -0.05], "no gain"),
        ([0.5, 0.5], "no gain"),  # two seeds say nothing
        ([0.5], "no gain"),
    ],
)
def test_a_gain_is_more_than_two_standard_errors_of_three_seeds(differences, word) -> None:
    assert distillation.verdict(differences) == word


def test_the_standard_error_is_that_of_the_mean() -> None:
    assert distillation.standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / 3**0.5)


def test_the_page_says_no_gain() -> None:
    runs = {name: [{"psnr": 35.0 + 0.1 * n, "seconds": 1.0} for n in range(3)]
            for name in distillation.ARMS}  # fmt: skip
    page = distillation.report(runs)
    assert page.summary.count("no gain") == len(distillation.ARMS) - 1
    assert "no gain" in page.markdown()


def test_what_is_there_is_not_trained_again(tmp_path, monkeypatch) -> None:
    trained = []

    def arm(terms, training, pairs, label):
        trained.append((training.seed, training.steps, label))
        return {"psnr": 30.0 + training.seed, "seconds": 1.0}

    monkeypatch.setattr(distillation, "arm", arm)
    monkeypatch.setattr(distillation, "photographs", list)
    training = replace(distillation.RECIPE, steps=5)
    first = distillation.measure(tmp_path, 2, training)
    assert len(trained) == 2 * len(distillation.ARMS)
    assert {(seed, steps) for seed, steps, _ in trained} == {(0, 5), (1, 5)}
    assert distillation.measure(tmp_path, 2, training) == first
    assert len(trained) == 2 * len(distillation.ARMS)
    assert distillation.gains(first, "output") == [0.0, 0.0]
