"""Conversions: all of them, what is given, kept and refused, resumption and several processes."""

import copy
import signal
from dataclasses import replace

import pytest
import torch

from potstill.core import Engine, Run
from potstill.core.engine import run_ranks
from potstill.core.errors import ConfigError, DataError, Interrupted, NonFiniteError, ShapeError
from potstill.nerf import Scene, Split, make_field, save_field, score
from potstill.nerf.cameras import pinhole
from potstill.nerf.distill.convert import convert, hand_over, student_of, transfer
from potstill.nerf.distill.distiller import FieldToField
from potstill.nerf.distill.evaluation import Stopwatch
from potstill.nerf.distill.objective import Progression
from potstill.nerf.distill.priors import SpherePrior, load_prior
from potstill.nerf.distill.virtual import VirtualRays
from potstill.nerf.fields.grid import GridField
from potstill.nerf.fields.hash import HashConfig
from potstill.nerf.fields.make import load_field

KINDS = ("hash", "mlp", "vm", "cp", "grid")


def go(teacher, kind, views, sizes, steps=40, **options):
    options = {"samples": 1000, "progress": False, "config": sizes[kind], **options}
    return convert(teacher, kind, views, steps=steps, **options)


@pytest.fixture(scope="module")
def teachers(teacher, prior, sizes):
    """One of each kind; all but the first are students themselves."""
    fields = {"hash": teacher}
    for kind in KINDS[1:]:
        fields[kind] = go(teacher, kind, prior, sizes, steps=25)[0]
    return fields


def test_a_student_comes_near_its_teacher_without_an_image(teacher, prior, sizes, scene):
    student, report = go(teacher, "hash", prior, sizes, steps=120)
    assert report.scores["teacher"] > 29  # the teacher itself has 24 dB to the images
    assert score(student, scene.test) > score(teacher, scene.test) - 1
    assert [stage["stage"] for stage in report.stages()] == ["features", "points", "pixels"]
    assert sum(stage["steps"] for stage in report.stages()) == 120


@pytest.mark.parametrize("theirs", KINDS)
@pytest.mark.parametrize("ours", KINDS)
def test_any_kind_becomes_any_other(theirs, ours, teachers, prior, sizes):
    student, report = go(teachers[theirs], ours, prior, sizes, steps=6)
    assert (student.kind, report.teacher) == (ours, theirs)
    assert torch.equal(student.occupancy.binaries, teachers[theirs].occupancy.binaries)
    names = {name for row in report.rows for name in row}
    assert ("feature" in names) == ("grid" not in (theirs, ours))
    assert {"density", "color", "pixel"} <= names
    assert report.head == ("grid" not in (theirs, ours))


def test_the_teacher_stays_as_it_is(teacher, prior, sizes):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    go(teacher, "cp", prior, sizes, steps=3)
    assert all(torch.equal(before[name], v) for name, v in teacher.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_only_a_checkpoint_and_a_prior_are_needed(teacher, sizes, tmp_path):
    path = save_field(teacher, tmp_path / "field.safetensors")
    again, _ = load_field(path)
    lens = pinhole(16, 16, 0.76)
    student, report = go(again, "vm", SpherePrior(lens, (3.0, 3.0), (0.1, 1.0)), sizes)
    assert report.scores["teacher"] > 15
    assert "truth" not in report.scores
    save_field(student, tmp_path / "student.safetensors")
    assert load_field(tmp_path / "student.safetensors")[0].kind == "vm"


def test_a_grid_stores_only_what_the_teacher_occupies(teacher, sizes):
    student = student_of(teacher, "grid", sizes["grid"])
    assert isinstance(student, GridField)
    assert not student.is_dense


@pytest.mark.parametrize("progression", [Progression(pools=True), Progression.paper()])
def test_a_killed_conversion_continues_bit_by_bit(progression, teacher, prior, sizes, tmp_path):
    def run(folder, stop=None):
        def progress(row, share):
            if row["step"] == stop:
                signal.raise_signal(signal.SIGTERM)

        options = {"run": Run(folder, every=50), "progress": progress, "every": 40}
        options |= {"progression": progression, "samples": 500}
        return go(teacher, "hash", prior, sizes, 75, **options)

    whole, report = run(tmp_path / "a")
    with pytest.raises(Interrupted):
        run(tmp_path / "b", stop=57)
    again, continued = run(tmp_path / "b")
    assert continued.curve("teacher")[0][1] == report.curve("teacher")[0][1]
    assert [row["loss"] for row in continued.rows] == [row["loss"] for row in report.rows]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_budget_in_seconds_has_stages_too(teacher, prior, sizes):
    options = {"samples": 500, "config": sizes["hash"], "progress": False, "clock": "cpu"}
    progression = Progression(feature_until=0.3, points_until=0.6)
    _, report = convert(teacher, "hash", prior, progression, seconds=0.4, **options)
    until = [stage["until"] for stage in report.stages()]
    assert len(until) == 3
    assert 0.1 < until[0] < until[1] < until[2]
    assert report.clock == "cpu"


def test_a_paused_watch_stands_still():
    watch = Stopwatch("cpu")
    before = watch()
    with watch.paused():
        sum(range(10**6))
        assert watch() - before < 1e-3
    assert watch() - before < 5e-3
    with pytest.raises(ConfigError, match="kind must be wall or cpu"):
        Stopwatch("gpu")


def test_hard_examples_come_back(teacher, prior, sizes):
    student = student_of(teacher, "hash", sizes["hash"])
    transfer(teacher, student)
    progression = Progression(feature_until=0, points_until=0, pools=True)
    options = {"samples": 500, "views": 20, "steps": 2}
    distiller = FieldToField(student, teacher, progression, prior=prior, **options)
    source = VirtualRays(prior, 400, views=20, steps=2)
    for step in range(3):
        distiller(source(step), step)
    written = distiller.choice.pools.written.tolist()
    assert written[0] == 2  # a tenth of one set
    assert written[1] > 20
    assert distiller.choice.choose(source(3), 3).returned > 10


def test_a_student_of_another_width_gets_a_projection(teacher, prior, sizes):
    class Narrow(type(student_of(teacher, "hash", sizes["hash"]))):
        def features(self, points):
            return super().features(points)[:, :9]

        def head(self, feature, views):
            return super().head(torch.nn.functional.pad(feature, (0, 7)), views)

    student = Narrow(sizes["hash"], teacher.space, occupancy=24, activation=teacher.activation)
    options = {"steps": 4, "samples": 500, "progress": False, "inherit": False}
    _, report = convert(teacher, student, prior, **options)
    assert "feature" in report.rows[0]
    assert not any("projector" in name for name in student.state_dict())
    with pytest.raises(ShapeError, match="features must be 16 wide like the teacher's, got 9"):
        convert(teacher, student, prior, project=False, **options)


def test_a_hand_over_needs_images_and_keeps_the_grid(teacher, prior, sizes, scene):
    student, _ = go(teacher, "hash", prior, sizes, steps=40)
    before = score(student, scene.test)
    student, history = hand_over(student, scene, steps=60, samples=1000, progress=False)
    assert score(student, scene.test) > before
    assert torch.equal(student.occupancy.binaries, teacher.occupancy.binaries)
    assert len(history) == 60
    poses = Scene("x", "x", Split(scene.train.cameras), Split(scene.test.cameras), scene.space)
    with pytest.raises(DataError, match="hand_over: scene must have images"):
        hand_over(student, poses, steps=1)


def test_what_cannot_be_converted_is_refused(teacher, prior, sizes, scene):
    def refused(error, message, field=teacher, kind="cp", views=prior, **options):
        with pytest.raises(error, match=message):
            convert(field, kind, views, **{"steps": 2, "progress": False, **options})

    empty = student_of(teacher, "hash", sizes["hash"])
    refused(DataError, "occupancy grid must have been computed, got a fresh one", empty)
    empty.occupancy.binaries.zero_()
    refused(DataError, "must have occupied cells, got none", empty)
    refused(ConfigError, "unknown kind 'hsh'; did you mean 'hash'", kind="hsh")
    refused(ConfigError, "config of 'cp' must be CPConfig, got MLPConfig", config=sizes["mlp"])
    own = copy.deepcopy(teacher).requires_grad_()
    refused(ConfigError, "give a budget", own, steps=None)
    assert all(parameter.requires_grad for parameter in own.parameters())
    refused(ConfigError, "student and teacher must not share parameters", kind=teacher)
    away = SpherePrior(pinhole(8, 8, 0.3), (3.0, 3.0), target=(90.0, 0.0, 0.0))
    refused(DataError, "pose prior must look at occupied space", views=away)
    other = make_field("cp", replace(scene.space, near=0.2), sizes["cp"], occupancy=24)
    refused(ConfigError, "must describe the space of the teacher", kind=other)
    coarse = make_field("cp", scene.space, sizes["cp"], occupancy=8)
    refused(ShapeError, "must have 24 cells an axis, got 8", kind=coarse)


def test_a_broken_batch_is_kept(teacher, prior, sizes, tmp_path):
    student = student_of(teacher, "hash", sizes["hash"])
    with torch.no_grad():
        student.grid.table.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="at step 0.*broken-batch.safetensors"):
        convert(teacher, student, prior, steps=3, progress=False, run=tmp_path / "run")
    from safetensors.torch import load_file

    batch = load_file(tmp_path / "run" / "broken-batch.safetensors")
    assert torch.equal(batch["local"], VirtualRays(prior)(0).local)


def test_rays_that_lose_the_field_end_the_conversion(teacher, prior, sizes):
    student = student_of(teacher, "hash", sizes["hash"])
    student.occupancy.binaries.zero_()
    distiller = FieldToField(student, teacher, Progression())
    batch = VirtualRays(prior, 16)(0)
    for step in range(99):
        distiller(batch, step)
    with pytest.raises(DataError, match="got 100 batches without a sample"):
        distiller(batch, 99)


def test_the_shares_of_the_processes_make_up_the_batch(prior):
    source = VirtualRays(prior, 101)
    whole, parts = source(7), [source(7, rank, 2) for rank in (0, 1)]
    for name, value in whole._asdict().items():
        if name != "poses":
            together = torch.empty_like(value)
            together[0::2], together[1::2] = (getattr(part, name) for part in parts)
            assert torch.equal(together, value), name


def two_processes_or_one(folder, out, stop=None):
    """A conversion in as many processes as call this; one that stops leaves a checkpoint."""

    def progress(row, share):
        if row["step"] == stop:
            signal.raise_signal(signal.SIGTERM)

    size = HashConfig(levels=6, log2_rows=12, base=8, finest=64, hidden=32)
    with Engine(device="cpu", find_unused=True) as engine:
        teacher, _ = load_field(folder / "teacher.safetensors")
        prior = load_prior(folder / "prior.json")
        options = {"config": size, "steps": 10, "samples": 800, "run": folder / out}
        try:
            student, _ = convert(
                teacher, "hash", prior, engine=engine, progress=progress, **options
            )
        except Interrupted:
            return {}
        return student.state_dict()


@pytest.mark.dist
def test_two_processes_give_the_parameters_of_one_and_continue_its_run(teacher, prior, tmp_path):
    save_field(teacher, tmp_path / "teacher.safetensors")
    prior.save(tmp_path / "prior.json")
    (one,) = run_ranks(two_processes_or_one, 1, tmp_path, "one")
    two, _ = run_ranks(two_processes_or_one, 2, tmp_path, "two")
    run_ranks(two_processes_or_one, 1, tmp_path, "both", 4)
    both, _ = run_ranks(two_processes_or_one, 2, tmp_path, "both")
    for other in (two, both):
        for name, value in one.items():
            # Adam divides by the root of a square that may itself be rounding: a few numbers in a
            # hundred thousand drift further than the rest.
            apart = (other[name].double() - value.double()).abs()
            assert float((apart > 1e-6).double().mean()) <= 1e-4, name
            assert float(apart.max()) <= 1e-5, name


def test_several_processes_must_look_for_unused_parameters(teacher, prior, sizes, monkeypatch):
    with Engine(device="cpu") as engine:
        monkeypatch.setattr(Engine, "world", 2)
        with pytest.raises(ConfigError, match="find_unused=True"):
            go(teacher, "hash", prior, sizes, engine=engine)
        monkeypatch.undo()
