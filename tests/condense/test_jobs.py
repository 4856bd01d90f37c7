"""The commands: what they leave, that they repeat and continue, and that figures are honest."""

import pytest
import torch
from PIL import Image

from potstill.condense import (
    PRESETS,
    Condense,
    CondenseConfig,
    Condensed,
    FollowConfig,
    Protocol,
    RecoverConfig,
    evaluate,
    preset,
    robustness,
)
from potstill.core import Training
from potstill.core.command import main
from potstill.core.errors import ConfigError, DataError, NonFiniteError, PotstillError

TINY = Training(steps=4, lr=1.0, device="cpu")
FOLLOW = FollowConfig(experts=2, epochs=3, expert_batch=4, last=2, span=1, steps=2, batch=4)
RECOVER = RecoverConfig(teacher="convnet-1-3-batch", teacher_steps=3)


def config(out, method="dm", **more) -> CondenseConfig:
    options = {"network": "convnet-2-3-instance", "follow": FOLLOW, "recover": RECOVER}
    return CondenseConfig(method=method, ipc=2, out=out, **{**options, "training": TINY, **more})


@pytest.mark.usefixtures("no_curves")
@pytest.mark.parametrize("method", ["dm", "datadam", "datm", "mtt", "sre2l", "cda"])
def test_every_method_leaves_a_set(tmp_path, pool_of, method: str) -> None:
    pool = pool_of((5, 4))
    job = Condense(config(tmp_path, method), pool)
    job.run(progress=False)
    found = Condensed.load(tmp_path / "condensed")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.labelled == {"datm": "soft", "sre2l": "teacher", "cda": "teacher"}.get(
        method, "hard"
    )
    assert (found.lr is None) == (method not in ("datm", "mtt"))
    assert found.about["data"] == pool.digest()
    assert (tmp_path / "gallery.png").exists()
    again = Condense(config(tmp_path, method), pool)  # finished: the same, at once
    again.run(progress=False)
    assert torch.equal(again.condensed.images, found.images)
    with pytest.raises(PotstillError, match="another"):
        Condense(config(tmp_path, method), pool_of((5, 4), seed=1)).run(progress=False)


def test_evaluation_has_the_random_images(pool_of) -> None:
    pool = pool_of((6, 6))
    made = Condensed.of(pool, torch.tensor([0, 6]), method="by hand")
    protocol = Protocol(("convnet-1-3-instance",), repeats=2, draws=2, steps=3, full_steps=3)
    found = evaluate(made, pool, pool, protocol)
    arms = found.accuracies["convnet-1-3-instance"]
    assert set(arms) == {
        "condensed", "random", "condensed, plain", "random, plain", "all images"
    }  # fmt: skip
    scores = found.scores("convnet-1-3-instance")
    mean = {name: sum(values) / 200 for name, values in arms.items()}
    assert scores["IOR"] == pytest.approx(mean["condensed"] - mean["random"])
    assert scores["HLR"] == pytest.approx(mean["all images"] - mean["condensed"])
    assert scores["LRS"] == robustness((scores["IOR"] - scores["HLR"]) / 2)
    assert "random" in found.report().markdown()
    with pytest.raises(DataError, match="train must be the images that were condensed"):
        evaluate(made, pool_of((6, 6), seed=1), pool, protocol)
    with pytest.raises(DataError, match="2 classes .* and 2 of|classes and the size"):
        evaluate(made, pool, pool_of((2, 2, 2)), protocol)


def test_a_random_set_is_its_own_baseline(pool_of) -> None:
    """Through the whole pipeline a random set is what the same rows are, bit for bit."""
    pool = pool_of((6, 6))
    first = Condensed.of(pool, torch.tensor([1, 3, 8, 9]), method="random")
    import dataclasses

    same = dataclasses.replace(first, baseline=first.rows[None])
    protocol = Protocol(("convnet-1-3-instance",), repeats=2, draws=1, steps=5, full_steps=1)
    arms = evaluate(same, pool, pool, protocol).accuracies["convnet-1-3-instance"]
    assert arms["condensed"] == arms["random"]


def test_scores_are_those_of_dd_ranking() -> None:
    assert robustness(0.0) == pytest.approx(0.268941, abs=1e-6)
    assert robustness(1.0) == 1
    assert robustness(-1.0) == 0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name: str) -> None:
    assert preset(name).training.steps


def test_the_commands(tmp_path, capsys) -> None:
    rng = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for number in range(12):
            path = tmp_path / part / "ab"[number % 2] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 256, (8, 8, 3), generator=rng, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(path)
    train, test = str(tmp_path / "train"), str(tmp_path / "test")
    quick = ["--network", "convnet-2-3-instance", "--steps", "2", "--device", "cpu"]
    one = str(tmp_path / "one")
    assert main(["condense", "condense", train, "dm", "2", *quick, "--out", one]) == 0
    again = ["condense", "condense", "--config", f"{one}/config.yaml", "--out"]
    assert main([*again, str(tmp_path / "two")]) == 0
    first, second = (Condensed.load(tmp_path / n / "condensed") for n in ("one", "two"))
    assert torch.equal(first.images, second.images)
    kept = str(tmp_path / "kept")
    assert main(["condense", "select", train, kept, "--ratio", "0.5"]) == 0
    assert len(Condensed.load(kept)) == 6
    judged = ["condense", "evaluate", kept, train, test, "--networks", "convnet-1-3-instance"]
    budget = ["--repeats", "1", "--steps", "2", "--full-steps", "2", "--device", "cpu"]
    assert main([*judged, *budget, "--out", str(tmp_path / "judged")]) == 0
    page = (tmp_path / "judged" / "index.html").read_text()
    assert "random" in page
    file = tmp_path / "datm.yaml"
    assert main(["condense", "preset", "datm-cifar10-1", str(file)]) == 0
    assert "datm" in file.read_text()
    capsys.readouterr()
    assert main(["condense", "condense", train, "dm", "7", *quick, "--out", kept + "7"]) == 2
    assert "images of class" in capsys.readouterr().err
    assert main(["condense", "condense", *quick, "--out", kept + "8"]) == 2
    assert "data must name the images" in capsys.readouterr().err


@pytest.mark.usefixtures("no_curves")
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, pool_of) -> None:
    wild = Training(steps=4, lr=1e30, device="cpu")
    with pytest.raises(NonFiniteError, match=r"at step \d.*learning rate \(1e\+30\)"):
        Condense(config(tmp_path, training=wild), pool_of((5, 4))).run(progress=False)


def test_options_that_cannot_be_are_refused(tmp_path, pool_of) -> None:
    with pytest.raises(ConfigError, match="accumulate and ema"):
        config(tmp_path, training=Training(accumulate=2))
    with pytest.raises(ConfigError, match="follow.experts must be at least 1"):
        config(tmp_path, follow=FollowConfig(experts=0))
    late = FollowConfig(experts=1, epochs=2, expert_batch=4, last=5)
    with pytest.raises(ConfigError, match="train them for longer"):
        Condense(config(tmp_path, "datm", follow=late), pool_of((4, 4))).run(progress=False)
