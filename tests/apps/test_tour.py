"""The tour: a failure stays where it is, and a missing domain is named with its install line."""

import io
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from potstill.core.measure.machine import Load


def chapter(quality: float = 90.0):
    from apps.tour.chapter import Chapter, Side, forward

    teacher, student = nn.Linear(64, 512), nn.Linear(64, 8)
    inputs = torch.zeros(4, 64)
    return Chapter(
        "One",
        Side("large", teacher, 92.0, forward, (teacher, inputs)),
        Side("small", student, quality, forward, (student, inputs)),
        "top-1",
        "%",
        "4 rows",
        "potstill one",
        "<p>hello</p>",
    )


@pytest.fixture
def tell_instead(monkeypatch):
    """Put programs in the place of those of the domains."""

    def put(**programs):
        for name, run in programs.items():
            monkeypatch.setitem(sys.modules, f"apps.tour.{name}", SimpleNamespace(run=run))

    return put


def run(names, tmp_path, terminal=False):
    from apps.tour.tour import tour

    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=terminal)
    return list(tour(names, tmp_path, True, console)), text


def test_every_chapter_is_of_a_domain():
    from apps.tour.tour import ORDER

    assert set(ORDER) <= entry_points(group="potstill.domains").names


def test_a_chapter_is_measured(tell_instead, tmp_path):
    def told(tell, out, quick):
        assert out == tmp_path / "sr"
        assert quick
        progress = tell("training", 0.5)
        progress({"loss": 0.25}, 0.5)
        return chapter()

    tell_instead(sr=told)
    (outcome,), text = run(["sr"], tmp_path)
    teacher, student = outcome.costs
    assert (teacher.parameters, student.parameters) == (64 * 512 + 512, 64 * 8 + 8)
    assert (teacher.macs, student.macs) == (4 * 64 * 512, 4 * 64 * 8)
    assert min(teacher.milliseconds, student.milliseconds, outcome.speedup.value) > 0
    assert text.getvalue().startswith("sr: top-1 92.00 -> 90.00 %")


def test_the_live_display_shows_every_domain_once(tell_instead, tmp_path):
    tell_instead(sr=lambda *_: chapter(), acm=lambda *_: chapter())
    _, text = run(["sr", "acm"], tmp_path, terminal=True)
    last = text.getvalue().split("\x1b[1A")[-1]  # after the last time that it drew itself anew
    assert last.count("top-1") == 2


def test_a_failure_is_shown_and_the_others_go_on(tell_instead, tmp_path, monkeypatch):
    from apps.tour import tour as module
    from apps.tour.page import page
    from apps.tour.tour import exit_status

    def broken(tell, out, quick):
        raise ValueError("the <scene> is empty\nand so on")

    here = module.find_spec
    monkeypatch.setattr(
        module, "find_spec", lambda name: None if name == "potstill.mae" else here(name)
    )
    tell_instead(sr=broken, acm=lambda *_: chapter())
    outcomes, text = run(["sr", "mae", "acm"], tmp_path)
    assert [bool(o.error) for o in outcomes] == [True, False, False]
    assert outcomes[1].install == "pip install potstill-mae"
    assert outcomes[2].costs is not None
    assert "sr: failed: ValueError: the <scene> is empty\n" in text.getvalue()
    assert "mae: skipped, not installed: pip install potstill-mae" in text.getvalue()

    report = page(outcomes, "python -m apps.tour", Load(), 1.0)
    html = report.page()
    assert "sr: failed" in html
    assert "ValueError: the &lt;scene&gt; is empty" in html
    assert "in broken" in html  # the whole trace
    assert "pip install potstill-mae" in html
    assert "<p>hello</p>" in html
    assert "python -m apps.tour" in html  # the command that printed the figures
    assert "mae: not installed: pip install potstill-mae" in report.markdown()
    assert exit_status(outcomes) == 1
    assert exit_status(outcomes[1:]) == 0
    assert exit_status(outcomes[1:2]) == 1, "nothing was there to run"


def test_the_last_line_says_whose_times_are_spoilt():
    from apps.tour.tour import Outcome, last_line

    outcomes = [Outcome("sr", others=0.9), Outcome("acm", others=0.01)]
    assert last_line(outcomes[1:]) == "times: nothing else ran meanwhile"
    said = "times that other programs may have spoilt: sr (0.9 cores); take them as ratios"
    assert last_line(outcomes) == said


def test_a_side_that_cannot_work_fails_its_chapter(tell_instead, tmp_path):
    from dataclasses import replace

    def odd(tell, out, quick):
        told = chapter()
        return replace(
            told, student=replace(told.student, inputs=(nn.Linear(3, 3), *told.teacher.inputs[1:]))
        )

    tell_instead(sr=odd)
    (outcome,), _ = run(["sr"], tmp_path)
    assert "RuntimeError: the race of teacher and student failed" in outcome.error


def test_memory_is_measured_in_a_full_run():
    from apps.tour.chapter import Chapter, Side, forward, measure

    model = nn.Linear(64, 4096)
    side = Side("large", model, 1.0, forward, (model, torch.zeros(1024, 64)))
    teacher, *_ = measure(Chapter("One", side, side, "top-1", "%", "rows", "", ""), quick=False)
    assert 16 <= teacher.mebibytes < 20  # the output, 1024 x 4096 floats
