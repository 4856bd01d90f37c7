"""Jobs and commands: what they leave, in whose layout, and that they continue."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from potstill.core import ConfigError, DataError, ShapeError, Training
from potstill.core.command import main
from potstill.flow import (
    CriticConfig,
    Data,
    Distill,
    DistillConfig,
    Items,
    MapConfig,
    PointNet,
    Student,
    StudentConfig,
    Teacher,
    TeacherConfig,
    TrainTeacher,
    Velocity,
    distill,
    evaluate,
    fid,
    grid,
    load_data,
    load_student,
    load_teacher,
    make_network,
    pixels,
    ring,
    save_student,
    save_teacher,
)

diffusers = pytest.importorskip("diffusers")

TINY = Training(steps=2, batch=4, lr=1e-3, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """A trained teacher of each network, in class folders of their own."""
    root = tmp_path_factory.mktemp("flow")
    for network, widths in (("unet", (8, 8)), ("dit", (16,))):
        config = TeacherConfig(
            out=root / network, network=network, widths=widths, training=TINY
        )  # fmt: skip
        TrainTeacher(config, digits).run(progress=False)
    return root


@pytest.mark.parametrize("network", ["unet", "dit"])
@pytest.mark.parametrize("method", ["boot", "freeflow", "dmd", "dmd2"])
def test_every_method_leaves_a_student(tmp_path, folder, digits, network, method) -> None:
    teacher = load_teacher(folder / network / "teacher", guidance=2.0)
    student = distill(
        teacher, method, out=tmp_path, data=digits if method == "dmd2" else None, training=TINY,
        check=False, critic=CriticConfig(updates=1, pairs=6, pair_steps=2), progress=False,
        map=MapConfig(derivative="jvp" if method == "boot" else "bootstrap"),
    )  # fmt: skip
    again = load_student(tmp_path / "student")
    samples = student.sample(5, seed=1)
    assert samples.shape == (5, 1, 8, 8)
    assert torch.equal(again.sample(5, seed=1), samples)
    assert torch.equal(again.sample(5, seed=1, batch=5), student.sample(7, seed=1)[:0].new_tensor(
        samples.tolist()
    ))  # fmt: skip
    assert again.about["method"] == method
    # The three lines of the documentation: diffusers alone.
    kind = getattr(diffusers, type(student.net.model).__name__)
    stock = kind.from_pretrained(tmp_path / "student" / "unet")
    z, time = torch.randn(2, 1, 8, 8), torch.full((2,), 1000.0 * student.at)
    with torch.no_grad():
        x = z - stock(z, timestep=time, class_labels=torch.tensor([0, 2])).sample
        torch.testing.assert_close(x, again(z, torch.tensor([0, 2])))


def test_disback_and_several_students(tmp_path, folder, digits) -> None:
    """Nodes are recorded; smaller students first learn to say what the teacher says."""
    teacher = load_teacher(folder / "unet" / "teacher")
    critic = CriticConfig(updates=1, pairs=12, pair_steps=2, nodes=2, node_steps=2, interval=1)
    options = {"training": TINY, "critic": critic, "progress": False}
    distill(teacher, "disback", out=tmp_path / "d", **options)
    assert sorted(path.name for path in (tmp_path / "d" / "degrade").iterdir()) == ["0", "1"]
    small = StudentConfig(students=2, widths=(4, 4), matching_steps=2)
    several = distill(teacher, "dmd", out=tmp_path / "m", student=small, **options)
    again = load_student(tmp_path / "m" / "student")
    assert torch.equal(again.sample(7), several.sample(7))
    assert again.router.tolist() == [0, 0, 1]
    assert (tmp_path / "m" / "students" / "1" / "matching").is_dir()
    phased = distill(teacher, "phased", out=tmp_path / "p", **options)
    again = load_student(tmp_path / "p" / "student")
    assert (again.evaluations, again.levels) == (2, (1.0, 0.5, 0.0))
    assert torch.equal(again.sample(4), phased.sample(4))
    with pytest.raises(ConfigError, match="from 1 to the 3 classes, got 4"):
        distill(teacher, "boot", out=tmp_path / "x", **options, student=StudentConfig(students=4))
    with pytest.raises(ConfigError, match="disback needs a teacher with weights"):
        distill(Teacher(ring()), "disback", out=tmp_path / "y", **options)


def test_twinflow_needs_no_teacher_but_its_size(tmp_path, folder, digits) -> None:
    for network, student in (("unet", StudentConfig()), ("dit", StudentConfig(students=2)),
                             ("unet", StudentConfig(widths=(4, 4)))):  # fmt: skip
        teacher, out = load_teacher(folder / network / "teacher"), tmp_path / str(hash(student))
        options = {"student": student, "training": TINY, "check": False, "progress": False}
        found = distill(teacher, "twinflow", out=out, data=digits, **options)
        again = load_student(out / "student")
        assert again.evaluations == 1
        assert torch.equal(again.sample(5, seed=1), found.sample(5, seed=1))
    with pytest.raises(ConfigError, match="twinflow learns from real items"):
        distill(teacher, "twinflow", out=tmp_path, training=TINY)
    with pytest.raises(ConfigError, match="critic.adversarial is of dmd2, got method='dmd'"):
        DistillConfig(method="dmd", critic=CriticConfig(adversarial=0.1))


def test_the_teacher_that_is_shipped_denoises_digits() -> None:
    pytest.importorskip("sklearn")
    teacher = load_teacher("digits")
    _, test = load_data("digits").split(1297 / 1797)
    assert (teacher.shape, teacher.classes, teacher.null) == ((1, 8, 8), 10, 10)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    values, labels, _ = test.items
    teacher.check(values[:200], labels[:200])


def test_a_stock_pipeline_loads_a_student(tmp_path) -> None:
    """Without classes and asked at time 1, it is one step of ``DDPMPipeline``."""
    torch.manual_seed(0)
    model = make_network("unet", (1, 8, 8), widths=(8, 8))
    teacher = Teacher.from_diffusers(
        model, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(1000)
    )
    student = Student(teacher.trainable(), shape=teacher.shape)
    save_student(student, tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(3)
    theirs = pipeline(2, rng, num_inference_steps=1, output_type="np").images
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = (load_student(tmp_path)(z) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(torch.from_numpy(theirs), ours.permute(0, 2, 3, 1))
    again = Teacher.from_diffusers(tmp_path)
    assert again.shape == (1, 8, 8)
    assert load_teacher(tmp_path).prediction == "flow"


def test_a_finished_run_is_there_at_once_and_another_is_refused(tmp_path, folder) -> None:
    teacher = load_teacher(folder / "unet" / "teacher")
    options = {"out": tmp_path, "progress": False}
    first = distill(teacher, "boot", training=TINY, **options)
    second = distill(teacher, "boot", training=TINY, **options)
    assert torch.equal(first.sample(3), second.sample(3))
    with pytest.raises(ConfigError, match="another"):
        distill(teacher, "boot", training=TINY, map=MapConfig(step=0.1), **options)


def test_the_report_has_teacher_and_student_on_the_same_noise(folder, digits) -> None:
    teacher = load_teacher(folder / "unet" / "teacher", guidance=1.5)
    student = Student(teacher.trainable(), shape=teacher.shape, classes=teacher.classes)

    class Judge(torch.nn.Module):
        def forward(self, images):
            return torch.nn.functional.one_hot(torch.zeros(len(images)).long(), 3).float()

    report = evaluate(student, teacher, digits.items, judge=Judge(), samples=12, steps=(1, 3))
    rows = {row.name: row.values for row in report._rows}
    assert [rows[name]["evaluations"] for name in rows] == [2, 6, 1]
    assert rows["teacher, 3 steps"]["rmse"] == 0
    assert {row["judge"] for row in rows.values()} == {rows["student"]["judge"]}
    assert 0 <= rows["student"]["coverage"] <= 1


def test_the_commands(tmp_path, digits, capsys) -> None:
    pictures = tmp_path / "pictures"
    values, labels, _ = digits.items
    for number, (image, label) in enumerate(zip(pixels(values), labels.tolist(), strict=True)):
        path = pictures / digits.classes[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    found = load_data(pictures)
    assert (found.shape, len(found.classes)) == ((1, 8, 8), 3)
    quick = ["--steps", "2", "--batch", "4", "--device", "cpu"]
    a, b, c = (str(tmp_path / name) for name in "abc")
    words = ["flow", "train-teacher", str(pictures), "--widths", "8", "8", *quick, "--out", a]
    assert main(words) == 0
    teacher = f"{a}/teacher"
    assert main(["flow", "distill", teacher, "boot", *quick, "--guidance", "2", "--out", b]) == 0
    assert main(["flow", "distill", "--config", f"{b}/config.yaml", "--out", c]) == 0
    first, second = (load_student(f"{x}/student").sample(4) for x in (b, c))
    assert torch.equal(first, second)
    assert main(["flow", "sample", f"{b}/student", str(tmp_path / "s.png"), "--n", "6"]) == 0
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size == (28, 19)
    judged = ["flow", "evaluate", f"{b}/student", teacher, str(pictures), "--judge", str(pictures)]
    some = ["--judge-steps", "2", "--samples", "8", "--steps", "1", "2", "--device", "cpu"]
    assert main([*judged, *some, "--out", str(tmp_path / "e")]) == 0
    assert "student" in (tmp_path / "e" / "index.html").read_text()
    assert (
        main(["flow", "distill", "mixture", "dmd", "--critic.pairs", "8", *quick, "--out", c + "2"])
        == 0
    )
    assert main(["flow", "sample", f"{c}2/student", str(tmp_path / "s.csv"), "--n", "3"]) == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 3
    capsys.readouterr()
    for words, code, said in (
        (["sample", f"{b}/student", "x.gif"], 2, "images are written as .png and points as .csv"),
        (["sample", f"{b}/student", "x.png", "--condition", "3"], 2, "a class from 0 to 2, got 3"),
        (["sample", teacher, "x.png"], 1, "must hold student.json, got none"),
        (["distill", "--out", c + "3"], 2, "teacher must name a folder, got nothing"),
        (["train-teacher", "--out", c + "4"], 2, "data must name the images, got nothing"),
        (["evaluate", "--out", c + "5"], 2, "student must be given, got nothing"),
        (["distill", teacher, "dmd2", "--out", c + "6"], 2, "got no data; pass --data"),
        (
            ["distill", teacher, "boot", "--critic.regression", "1"],
            2,
            "critic.regression is of dmd",
        ),
    ):
        assert main(["flow", *words]) == code, words
        assert said in " ".join(capsys.readouterr().err.split()), words


def test_data_that_does_not_fit_is_refused(tmp_path, folder, digits) -> None:
    teacher = load_teacher(folder / "unet" / "teacher")
    large = Data(Items(torch.zeros(4, 1, 16, 16), torch.zeros(4).long()), digits.classes)
    config = DistillConfig(method="dmd2", out=tmp_path, data=tmp_path, training=TINY)
    with pytest.raises(ShapeError, match="data must be .items, 1, 8, 8., as the teacher"):
        Distill(config, teacher, large).run(progress=False)
    with pytest.raises(ConfigError, match="multiple of 2 for unet, got 7; resize with --size"):
        make_network("unet", (1, 7, 7))
    with pytest.raises(ConfigError, match="square images"):
        make_network("unet", (2,))
    with pytest.raises(ConfigError, match="points must be"):
        make_network("points", (1, 8, 8))
    with pytest.raises(ConfigError, match="to become pictures"):
        grid(torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="at least 10000"):
        fid(torch.zeros(1000, 3, 8, 8), torch.zeros(20_000, 3, 8, 8))


def test_folders_that_are_damaged_are_refused(tmp_path, folder) -> None:
    student = Student(Velocity(PointNet(2, 8, 2)))
    save_student(student, tmp_path)
    assert torch.equal(load_student(tmp_path).sample(3), student.sample(3))
    text = (tmp_path / "student.json").read_text()
    for broken in (
        text[:40],
        text.replace("PointNet", "Conv9"),
        text.replace('"flow",\n "path"', '"x",\n "path"'),
    ):
        (tmp_path / "student.json").write_text(broken)
        with pytest.raises((DataError, ConfigError), match="student.json"):
            load_student(tmp_path)
    with pytest.raises(DataError, match="must hold teacher.json, got none"):
        load_teacher(tmp_path)
    with pytest.raises(ConfigError, match="must be of diffusers or a potstill.core.Pretrained"):
        save_student(Student(Velocity(torch.nn.Linear(2, 2))), tmp_path)
    with pytest.raises(ConfigError, match="null must be a label"):
        save_teacher(Teacher(PointNet(), null=torch.zeros(2)), tmp_path)
    assert load_teacher("mixture").shape == (2,)


def test_losses_that_are_not_finite_are_refused(tmp_path, folder) -> None:
    from potstill.core import NonFiniteError

    teacher = load_teacher(folder / "unet" / "teacher")
    job = Distill(DistillConfig(method="dmd", out=tmp_path, training=TINY, critic=CriticConfig(
        updates=1, regression=0.0)), teacher)  # fmt: skip
    make = job._critic

    def broken(*arguments):
        critic = make(*arguments)
        next(critic.parameters()).data.fill_(float("nan"))
        return critic

    job._critic = broken  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="step 0, from denoise"):
        job.run(progress=False)


PROGRAM = """
import sys
import potstill.flow
from potstill.flow import Teacher, Student, OneStep, mmd2
assert "diffusers" not in sys.modules
sys.modules["diffusers"] = None
from potstill.flow import make_network
try:
    make_network("unet", (1, 8, 8))
except Exception as error:
    assert 'pip install "potstill-flow[diffusers]"' in str(error), error
else:
    raise SystemExit("diffusers was found")
"""


def test_diffusers_is_imported_when_it_is_needed() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_a_student_of_points_is_described(tmp_path) -> None:
    student = distill(
        Teacher(ring()), "boot", out=tmp_path, width=8, progress=False,
        training=Training(steps=1, batch=4, device="cpu"),
    )  # fmt: skip
    facts = json.loads((tmp_path / "student" / "student.json").read_text())
    assert (facts["at"], facts["network"]) == (0.0, "PointNet")
    assert student.sample(3).shape == (3, 2)


class Killed(BaseException):
    """As hard as SIGKILL: nothing is written on the way out."""


@pytest.mark.parametrize(
    ("method", "student"),
    [
        ("disback", StudentConfig()),
        ("dmd", StudentConfig(students=2, widths=(4,), matching_steps=2)),
    ],
)
def test_a_killed_job_of_several_parts_goes_on(tmp_path, monkeypatch, method, student) -> None:
    """Killed in each of its parts: nodes, smaller networks, students; the same bits come out."""
    from potstill.core.engine import fit as engine

    torch.manual_seed(0)
    teacher = Teacher(PointNet(2, 8, 2, classes=4), classes=4)
    step, taken, last = engine._Loop._step, 0, 10_000

    def counted(loop, *arguments):
        nonlocal taken
        taken += 1
        if taken == last:
            raise Killed
        return step(loop, *arguments)

    monkeypatch.setattr(engine._Loop, "_step", counted)
    training = Training(steps=3, batch=4, device="cpu", checkpoint_minutes=1e-9)
    critic = CriticConfig(updates=1, pairs=8, pair_steps=1, nodes=2, node_steps=2, interval=1)
    options = {"training": training, "critic": critic, "student": student, "progress": False}
    whole = distill(teacher, method, out=tmp_path / "whole", **options).state_dict()
    total = taken
    for last in (2, total // 2, total):
        taken = 0
        with pytest.raises(Killed):
            distill(teacher, method, out=tmp_path / str(last), **options)
        taken = -10_000
        again = distill(teacher, method, out=tmp_path / str(last), **options).state_dict()
        assert all(torch.equal(again[name], value) for name, value in whole.items()), last
