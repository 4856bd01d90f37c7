"""The same noise through a teacher at 1, 2, 4, 8 and 50 evaluations, and through its student.

    python -m apps.flow.gallery                    # scikit-learn's digits; minutes on a CPU
    python -m apps.flow.gallery --method dmd2
    python -m apps.flow.gallery --small            # seconds: does it work?

One page: a row of pictures for each sampler, and the table of `potstill.flow.evaluate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from potstill.core import Report, Training
from potstill.core.engine import fit_with
from potstill.core.measure.report import data_uri
from potstill.flow import (
    CriticConfig,
    Data,
    Judge,
    Learning,
    Prior,
    Student,
    Teacher,
    TeacherConfig,
    TrainTeacher,
    distill,
    evaluate,
    grid,
    load_data,
    load_teacher,
)

STEPS, SHOWN = (1, 2, 4, 8, 50), 20


def digits() -> tuple[Data, Data]:
    """1,297 images of scikit-learn's digits to learn from, 500 to compare with."""
    return load_data("digits").split(1297 / 1797)


def pictures(student: Student, teacher: Teacher, out: Path) -> str:
    """A row of pictures for each sampler, all of the same noise and the same classes."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(SHOWN, *teacher.shape, generator=rng)
    labels = torch.arange(SHOWN) % teacher.classes
    rows = {f"teacher, {n}": teacher.sample(z, labels, steps=n) for n in STEPS}
    with torch.no_grad():
        rows["student, 1"] = student(z, labels)
    html = []
    for number, (name, values) in enumerate(rows.items()):
        sheet = grid(values.cpu(), SHOWN).permute(1, 2, 0).numpy()
        path = out / f"{number}.png"
        picture = Image.fromarray(sheet.squeeze(2) if sheet.shape[2] == 1 else sheet)
        picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST).save(path)
        html.append(f'<p>{name}</p><img alt="{name}" src="{data_uri(path)}" style="width:100%">')
    return "".join(html)


def show(
    student: Student, teacher: Teacher, train: Data, test: Data, out: Path, small: bool
) -> Report:
    """The page."""
    judge = Judge(train.shape[0], len(train.classes))
    source = Prior(train.shape, 64, data=train.items)
    training = Training(steps=10 if small else 1500, lr=2e-3, final=0.0)
    fit_with(training, Learning(judge), source, progress="judge")
    count = 40 if small else 1000
    report = evaluate(student, teacher, test.items, judge=judge.cpu(), samples=count, steps=STEPS)
    report.html(pictures(student.cpu(), teacher.cpu(), out), "The same noise")
    report.save(out)
    return report


def main(arguments: Sequence[str] | None = None) -> Report:
    """Train, distil, show; returns the report, whose page is in the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/flow_gallery"))
    parser.add_argument("--method", default="boot", choices=("boot", "freeflow", "dmd", "dmd2"))
    parser.add_argument("--small", action="store_true", help="seconds: does it work?")
    options = parser.parse_args(arguments)
    small, (train, test) = options.small, digits()
    config = TeacherConfig(
        out=options.out / "teacher", widths=(8, 8) if small else (32, 48),
        training=Training(
            steps=5 if small else 6000, batch=64, lr=1e-3, final=0.0, ema=0.9 if small else 0.999
        ),
    )  # fmt: skip
    TrainTeacher(config, train).run(progress="teacher")
    teacher = load_teacher(config.out / "teacher")
    student = distill(
        teacher, options.method, out=options.out / options.method, check=not small,
        data=train if options.method == "dmd2" else None, critic=CriticConfig(pairs=64),
        training=Training(
            steps=5 if small else 2000, batch=64, lr=5e-4, final=0.0, ema=0.9 if small else 0.99
        ),
    )  # fmt: skip
    assert isinstance(student, Student)
    report = show(student, teacher, train, test, options.out, small)
    report.show()
    return report


if __name__ == "__main__":
    main()
