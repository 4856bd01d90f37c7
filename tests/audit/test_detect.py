"""Inversion, outliers of features, disagreement, pruning, and the inspection of all."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from potstill.audit import (
    Data,
    Disagreement,
    Inverted,
    Learning,
    Network,
    Patch,
    anomaly,
    clusters,
    features,
    fine_tune,
    inspect,
    invert,
    jsd,
    outputs,
    poison,
    prune,
    repair,
    spectral,
    success,
    triggered,
)  # fmt: skip
from potstill.core.errors import ConfigError, ShapeError


def test_the_anomaly_index_by_hand() -> None:
    """Oracle 7."""
    index, reason = anomaly([10, 12, 11, 9, 2, 10.5, 8, 9.5, 11.5, 10])
    assert index is not None
    assert index[4] == pytest.approx(5.395926, abs=1e-6)
    assert not reason
    assert anomaly([10, 10, 10, 10, 2, 10]) == (None, "the sizes have no spread (MAD = 0)")
    assert anomaly([1, 2, 3, 4]) == (None, "fewer than 5 classes (4)")


@pytest.fixture(scope="module")
def inverted(poisoned: Network, digits: Data) -> Inverted:
    return invert(poisoned, digits.student[0][:40], classes=10)


def test_inversion_finds_the_small_trigger(
    inverted: Inverted, poisoned: Network, digits: Data, patch: Patch
) -> None:
    assert min(range(10), key=lambda k: inverted.sizes[k]) == 0
    assert inverted.sizes[0] < 0.6 * sorted(inverted.sizes)[5]
    assert success(poisoned, *digits.test, inverted.trigger(0), 0).rate > 0.8
    assert inverted.masks.shape == (10, 1, 8, 8)
    assert not inverted.masks.requires_grad
    assert "safe" not in inverted.summary()


def test_a_page_of_the_triggers(inverted: Inverted, tmp_path: Path) -> None:
    page = inverted.save(tmp_path).read_text()
    assert page.count("<img") == 10
    assert "Found: class" in page or "Not found" in page


def test_a_killed_inversion_goes_on(clean: Network, digits: Data, tmp_path: Path) -> None:
    """The weights of the sizes are state: without them a resumed run would end elsewhere."""
    x = digits.student[0][:8]
    whole = invert(clean, x, classes=10, steps=12)
    invert(clean, x, classes=10, steps=5, run=tmp_path / "run")
    rest = invert(clean, x, classes=10, steps=12, run=tmp_path / "run")
    assert rest.sizes == whole.sizes


def test_what_cannot_be_inverted_is_refused(clean: Network, digits: Data) -> None:
    x = digits.student[0][:8]
    with pytest.raises(ConfigError, match="undo the normalisation and pass it as normalize="):
        invert(clean, x - 0.5, classes=10)
    with pytest.raises(ShapeError, match="must give 7 logits for each input, got .10."):
        invert(clean, x, classes=7)
    few = invert(clean, x, classes=10, steps=1)
    assert few.index is None
    assert few.found is None
    assert "no trigger flips" in few.summary()


def test_normalised_models_see_normalised_stickers(clean: Network, digits: Data) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = clean(x + 0.5)
            return logits

    x = digits.student[0][:8]
    one = invert(clean, x, classes=10, steps=5)
    other = invert(Shifted(), x, classes=10, steps=5, normalize=lambda x: x - 0.5)
    torch.testing.assert_close(one.masks, other.masks, atol=1e-3, rtol=1e-3)


def test_outliers_of_features(poisoned: Network, digits: Data, patch: Patch) -> None:
    found = poison(*digits.teacher, patch, 0, 0.1)
    own = found.y == 0
    truth = torch.zeros(len(own), dtype=torch.bool)
    truth[found.rows] = True
    f, truth = features(poisoned, "first", found.x[own]), truth[own]
    for scores in (spectral(f), spectral(f, centred=False)):
        inside, outside = scores[truth], scores[~truth]
        assert float((inside[:, None] > outside).double().mean()) != 0.5
    assert not torch.allclose(spectral(f), spectral(f, centred=False))
    flagged = clusters(f)
    assert 0 < int(flagged.sum()) <= len(f) / 2
    assert (
        float(truth[flagged].double().mean()) > 0.9 or float(truth[~flagged].double().mean()) > 0.9
    )
    with pytest.raises(ConfigError, match="at least 2 items"):
        spectral(f[:1])


def test_spectral_scores_by_hand() -> None:
    f = torch.tensor([[0.0, 1.0], [0.0, 1.0], [4.0, 1.0]])
    torch.testing.assert_close(
        spectral(f), torch.tensor([16 / 9, 16 / 9, 64 / 9], dtype=torch.float64)
    )
    torch.testing.assert_close(
        spectral(f, centred=False), torch.tensor([0.0, 0, 16], dtype=torch.float64)
    )


def test_disagreement_catches_triggers(
    poisoned: Network, learning: Learning, digits: Data, patch: Patch
) -> None:
    student = learning.train_student(*digits.student, 0)
    x, y = digits.test
    watch = Disagreement.calibrated(poisoned, student, x[:250], 0.05)
    assert float(watch(x[250:]).double().mean()) < 0.15
    stamped = triggered(patch, x[250:][y[250:] != 0])
    assert float(watch(stamped).double().mean()) > 0.5
    with pytest.raises(ConfigError, match="clean inputs at least 1 / false_alarms"):
        Disagreement.calibrated(poisoned, student, x[:10], 0.05)
    with pytest.raises(ShapeError, match="same classes in the same order"):
        jsd(torch.zeros(2, 3), torch.zeros(2, 4))


def test_pruning_a_unit_that_nothing_hears_changes_nothing(digits: Data) -> None:
    """Oracle 12."""
    torch.manual_seed(0)
    model = Network((1, 8, 8), 10, (6, 5))
    with torch.no_grad():
        model.head.weight[:, 2] = 0
        model.rest[0][0].bias[:] = 1.0
        model.rest[0][0].bias[2] = -100.0  # and least active: it goes first
    x, y = digits.test
    _pruned, done = prune(model, "rest.0.0", x, outputs(model, x).argmax(1), allowed=0.0)
    assert done[0] == 2
    only = Network((1, 8, 8), 10, (6, 5))
    only.load_state_dict(model.state_dict())
    with torch.no_grad():
        only.rest[0][0].weight[2] = only.rest[0][0].bias[2] = 0
    assert torch.equal(only(x), model(x))
    with pytest.raises(ConfigError, match=r"layer must be a linear or convolutional module"):
        prune(model, "pool", x, y)


def test_pruning_keeps_its_promise_and_has_its_control(
    poisoned: Network, digits: Data, patch: Patch
) -> None:
    x, y = digits.student[0][:100], digits.student[1][:100]
    before = {k: v.clone() for k, v in poisoned.state_dict().items()}
    arms = repair(poisoned, "first.1.0", x, y, steps=5)
    assert all(torch.equal(v, before[k]) for k, v in poisoned.state_dict().items())
    right = [float((outputs(m, x).argmax(1) == y).double().mean()) for m in arms]
    assert right[2] >= right[0] - 0.04
    assert not torch.equal(outputs(arms.tuned, x), outputs(arms.before, x))
    assert torch.equal(outputs(fine_tune(poisoned, x, y, steps=5), x), outputs(arms.tuned, x))


def test_an_inspection_says_found_or_not_found(
    poisoned: Network, clean: Network, learning: Learning, digits: Data, inverted: Inverted
) -> None:
    x, y = digits.test
    student = learning.train_student(*digits.student, 0)
    ink = x.mean((1, 2, 3))
    found = inspect(
        poisoned, x, y, student=student, controls={"clean": clean}, inverted=inverted,
        slices={"bold": ink > ink.median()}, steps=60,
    )  # fmt: skip
    page = found.report().page()
    for word in ("Controls", "Accuracy on slice bold", "Disagreement with the student"):
        assert word in page
    assert found.disagreement is not None
    assert found.disagreement[1] > found.disagreement[0]
    assert found.transfer["teacher"][0] > found.transfer["student"][0]
    assert len(found.accuracy["student"]) == 10
    assert "ound" in found.summary()
    assert "safe" not in page.replace("unsafe-inline", "").lower()
    with pytest.raises(ShapeError, match="inspect: student"):
        inspect(clean, x, y, student=nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
