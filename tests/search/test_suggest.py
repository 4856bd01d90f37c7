"""The search, with trainings and clocks that are replaced by tables."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from potstill.core import (
    BackendError,
    CheckpointError,
    ConfigError,
    ShapeError,
    Training,
    count_parameters,
)
from potstill.core.store import root
from potstill.core.testing import requires_data
from potstill.search import (
    Budget,
    Latency,
    Space,
    Task,
    check_table,
    image_task,
    read_table,
    resnet,
    suggest,
)
from potstill.search.scores import SCORES

WIDTHS, DEPTHS = (2, 4, 6, 8, 10), (1, 2, 3)


def build(width: int, depth: int) -> nn.Module:
    if (width, depth) == (2, 3):
        raise ValueError("too thin")
    rest = (nn.Linear(width, width) for _ in range(1, depth))
    net = nn.Sequential(nn.Linear(2, width), *rest)
    net.choice = (width, depth)
    return net


def truth(net: nn.Module) -> float:
    """Larger is better up to a width of 8; deep ones of 8 are best."""
    width, depth = net.choice
    return 10 * min(width, 8) + depth - (5 if width > 8 else 0)


class Spy:
    """A fit and a clock that count their calls, and stop at one of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.calls, self.trained = stop, 0, []

    def _count(self) -> None:
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1

    def fit(self, distiller, source, folder, steps) -> None:
        self._count()
        self.trained.append((distiller.choice, steps))

    def timer(self, net, example) -> Latency:
        self._count()
        depth = net.choice[1]
        return Latency(float(depth), 0.9 * depth, 1.1 * depth)


@pytest.fixture
def task() -> Task:
    return Task(torch.zeros(1, 2), lambda student: student, None, truth, name="toy")


@pytest.fixture
def space() -> Space:
    return Space(build, {"width": WIDTHS, "depth": DEPTHS}, name="toy")


TRAINING = Training(steps=8, device="cpu")


def run(space, task, budget, spy=None, **options):
    spy = spy or Spy()
    return suggest(space, task, budget, training=TRAINING, fit=spy.fit, timer=spy.timer, **options)


def test_all_candidates_are_costed_and_the_shortlist_is_halved(space, task) -> None:
    spy = Spy()
    found = run(space, task, Budget(milliseconds=2.5), spy, shortlist=4)
    allowed = [c.choice for c in found.candidates if not c.excess and not c.error]
    assert all(choice["depth"] <= 2 for choice in allowed)
    assert len(allowed) == 10
    sizes = sorted(allowed, key=lambda c: -count_parameters(build(**c)))
    listed = [((c["width"], c["depth"]), 4) for c in sizes[:4]]
    assert spy.trained[:4] == listed
    assert [steps for _, steps in spy.trained[4:]] == [8, 8]
    assert found.best.choice == {"width": 8, "depth": 2}
    assert found.student.choice == (8, 2)


def test_a_shortlist_of_everything_finds_the_optimum(space, task) -> None:
    found = run(space, task, Budget(parameters=1e9), shortlist=15)
    best = max((build(**c.choice) for c in found.candidates if not c.error), key=truth)
    assert (found.best.choice["width"], found.best.choice["depth"]) == best.choice
    assert "The budget does not bind" in " ".join(found.notes)
    assert any("1 candidates could not be built" in note and "too thin" in note
               for note in found.notes)  # fmt: skip


@requires_data("search/s1_cifar100_resnets.json")
def test_all_of_diswots_table_gives_its_best_network() -> None:
    rows = read_table(root() / "search/s1_cifar100_resnets.json")
    table = {tuple(row["depth"]): row["distilled"] for row in rows}

    def made(depth) -> nn.Module:
        net = nn.Linear(2, sum(depth))
        net.depth = depth
        return net

    task = Task(torch.zeros(1, 2), lambda s: s, None, lambda s: table[s.depth], name="s1")
    found = suggest(Space(made, {"depth": tuple(table)}), task, Budget(parameters=1e9),
                    training=TRAINING, fit=lambda *_, **__: None, shortlist=64)  # fmt: skip
    assert found.best.accuracy[-1] == max(table.values())


def test_nothing_within_the_budget_names_the_nearest(space, task) -> None:
    with pytest.raises(ConfigError, match=r"width=2 depth=1 with parameters 6, 20% above"):
        run(space, task, Budget(parameters=5))


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (Budget(), {}, "budget must have a bound"),
        (Budget(macs=9), {"shortlist": 1}, "shortlist and training.steps must be at least 2"),
        (Budget(macs=9), {"score": "size"}, "score must be one of parameters"),
        (Budget(macs=9), {"score": "diswot"}, "needs a teacher and labelled inputs"),
    ],
)
def test_options_that_cannot_be_met_are_refused(space, task, budget, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        run(space, task, budget, **options)


def test_an_unsteady_clock_is_refused(space, task) -> None:
    def shaky(net, example) -> Latency:
        return Latency(1.0, 0.5, 1.0)

    with pytest.raises(BackendError, match="wait until the machine is idle"):
        suggest(space, task, Budget(milliseconds=2), training=TRAINING, timer=shaky)


@pytest.mark.parametrize("stop", [0, 5, 14, 16, 18, 19])
def test_killed_anywhere_it_goes_on_to_the_same_answer(space, task, tmp_path: Path, stop) -> None:
    budget = Budget(milliseconds=2.5)
    whole = Spy()
    expected = run(space, task, budget, whole, shortlist=4, out=tmp_path / "whole")
    first = Spy(stop)
    with pytest.raises(KeyboardInterrupt):
        run(space, task, budget, first, shortlist=4, out=tmp_path / "killed")
    with (tmp_path / "killed/search.jsonl").open("a") as file:
        file.write('["score par')  # cut off while it was written
    second = Spy()
    found = run(space, task, budget, second, shortlist=4, out=tmp_path / "killed")
    assert found.best == expected.best
    assert first.calls == stop
    assert second.calls <= whole.calls - stop + 1  # the best is fetched from its folder
    ledger = [(tmp_path / name / "search.jsonl").read_text() for name in ("whole", "killed")]
    assert ledger[0] == ledger[1]


def test_a_space_in_which_nothing_can_be_built_says_why(task) -> None:
    with pytest.raises(ConfigError, match=r"2 that cannot; width=2 depth=3: ValueError: too thin"):
        run(Space(build, {"width": (2,), "depth": (3, "3")}, valid=lambda width, depth: True), task,
            Budget(macs=9))  # fmt: skip


@pytest.mark.parametrize("what", ["space", "task", "seed", "steps", "score"])
def test_a_folder_of_another_search_names_it(space, task, tmp_path, what) -> None:
    own = {"space": space, "task": task, "budget": Budget(macs=100), "training": TRAINING,
           "fit": Spy().fit, "out": tmp_path}  # fmt: skip
    suggest(**own)
    other = {
        "space": {"space": Space(build, {"width": WIDTHS, "depth": (1, 2)}, name="toy")},
        "task": {"task": replace(task, name="other")},
        "seed": {"training": replace(TRAINING, seed=3)},
        "steps": {"training": replace(TRAINING, steps=6)},
        "score": {"score": "macs"},
    }
    with pytest.raises(CheckpointError, match=rf"another {what} \(.*choose another folder"):
        suggest(**{**own, **other[what]})


def test_a_folder_of_another_search_is_refused_by_what_differs(space, task, tmp_path) -> None:
    run(space, task, Budget(macs=100), out=tmp_path)
    with pytest.raises(CheckpointError, match=r"another budget \(.*100.*now.*90"):
        run(space, task, Budget(macs=90), out=tmp_path)
    path = tmp_path / "search.jsonl"
    path.write_text(path.read_text().replace("[", "{", 1))
    with pytest.raises(CheckpointError, match=r"search.jsonl must hold the lines of a search"):
        run(space, task, Budget(macs=100), out=tmp_path)


def test_scores_that_are_not_finite_come_last_and_are_counted(space, task, monkeypatch) -> None:
    def score(net, batch, teacher=None) -> float:
        return {6: math.nan, 8: -math.inf}.get(net.choice[0], net.choice[0])

    monkeypatch.setitem(SCORES, "synflow", score)
    found = run(space, task, Budget(macs=1e9), score="synflow", shortlist=3)
    assert found.best.choice["width"] == 10
    assert any("6 candidates have no finite synflow" in note for note in found.notes)


def test_the_page_shows_the_agreement_of_the_used_score_and_of_controls(space, task, tmp_path):
    found = run(space, task, Budget(milliseconds=2.5), shortlist=4, out=tmp_path)
    page = found.report().page()
    for text in (
        "parameters, used",
        "random",
        "macs",
        "too few",
        "width=8 depth=2",
        "not measured",
    ):
        assert (text in page) == (text != "not measured")
    table = check_table(tmp_path, "half", ["parameters", "macs", "milliseconds"])
    assert "4, too few" in table.markdown()


def test_large_spaces_are_sampled(space, task) -> None:
    found = run(space, task, Budget(macs=1e9), candidates=6, shortlist=2, sampler="random")
    assert len(found.candidates) == 6
    assert "6 of 15 candidates were looked at (random)." in found.notes


def test_optuna_proposes_different_candidates_and_respects_the_budget(space, task, tmp_path):
    pytest.importorskip("optuna")
    options = {"candidates": 12, "shortlist": 2, "sampler": "optuna", "out": tmp_path}
    found = run(space, task, Budget(macs=100), **options)
    assert len({c.name for c in found.candidates}) == 12
    assert found.best.costs["macs"] <= 100
    again = run(space, task, Budget(macs=100), Spy(1), **options)  # all but the best is known
    assert [c.name for c in again.candidates] == [c.name for c in found.candidates]


def test_without_optuna_a_large_space_says_what_to_install(space, task, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BackendError, match=r"pip install 'potstill-search\[optuna\]'"):
        run(space, task, Budget(macs=100), candidates=6)


def test_images_and_a_teacher_make_a_task(images_of, teacher, tmp_path: Path) -> None:
    task = image_task(teacher, images_of(24), images_of(9, 1), folder=tmp_path, batch=6)
    batch = next(task.source.stream(0, SimpleNamespace(seed=0, rank=0, world=1)))
    assert [tuple(part.shape) for part in batch] == [(6, 3, 8, 8), (6,), (6, 3)]
    torch.testing.assert_close(teacher(batch[0]), batch[2], atol=2e-3, rtol=2e-3)
    assert task.accuracy(teacher) == task.reference
    with pytest.raises(ShapeError, match="3 outputs, one for each class of the images, got 10"):
        image_task(resnet(10).make({"depth": (1,), "width": 4}), images_of(24), images_of(9),
                   folder=tmp_path / "b")  # fmt: skip


def test_students_with_other_outputs_than_the_teacher_are_refused(teacher):
    small = resnet(5, depth=((1,),), width=(4, 6))
    own = Task(torch.zeros(1, 3, 8, 8), lambda s: s, None, truth, name="t", teacher=teacher)
    with pytest.raises(ShapeError, match=r"\[1, 3\], got \[1, 5\]"):
        suggest(small, own, Budget(macs=1e9), training=TRAINING, fit=Spy().fit)


def test_without_classes_a_student_is_judged_by_its_teacher(images_of, teacher, tmp_path) -> None:
    bare = [replace(images_of(n), labels=torch.full((n,), -1), classes=()) for n in (24, 9)]
    task = image_task(teacher, *bare, folder=tmp_path, batch=6)
    assert task.reference == 100
    assert set(task.distiller(teacher).objective.at(0)) == {"kd"}
    assert json.dumps(task.classes) == "[]"
