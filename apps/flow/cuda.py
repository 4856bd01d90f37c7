"""CIFAR-10: a class-conditional UNet of 10 million parameters, and its one-step student, in bf16.

python -m apps.flow.cuda                     needs the CIFAR-10 subset below POTSTILL_DATA
python -m apps.flow.cuda --small             digits, seconds on a CPU
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from apps import card
from apps.flow.gallery import digits, pictures
from potstill.core import Training, count_parameters, locate
from potstill.flow import Data, TeacherConfig, TrainTeacher, distill, load_data, load_teacher


def cifar() -> tuple[Data, Data]:
    """The images of the subset, 32x32."""
    folder = locate("vision/cifar10_10k.zip") / "cifar10"
    return load_data(folder / "train"), load_data(folder / "test")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Train, distil, time both in turns; returns the page."""
    options = card.options_of((__doc__ or "").splitlines()[0], arguments)
    small = options.small
    train, _ = digits() if small else cifar()
    budget = Training(
        steps=3 if small else 10_000, batch=16 if small else 512, lr=5e-4, final=0.0,
        ema=0.9 if small else 0.999, precision="fp32" if small else "bf16",
    )  # fmt: skip
    config = TeacherConfig(
        out=options.out / "teacher", widths=(8, 8) if small else (96, 128, 192),
        depth=1 if small else 2,
        training=budget,
    )  # fmt: skip
    TrainTeacher(config, train).run(progress="teacher")
    teacher = load_teacher(config.out / "teacher", guidance=1.0)
    student = distill(
        teacher, "freeflow", out=options.out / "student",
        training=replace(budget, steps=3 if small else 2000, lr=2e-4, ema=0.9 if small else 0.99),
    )  # fmt: skip
    seen = pictures(student, teacher.cpu(), options.out)  # type: ignore[arg-type]
    count = 16 if small else 512
    z = torch.randn(count, *teacher.shape, device=card.DEVICE)
    labels = torch.arange(count, device=card.DEVICE) % teacher.classes
    teacher, student = teacher.to(card.DEVICE).eval(), student.to(card.DEVICE).eval()
    with torch.no_grad():
        calls = {
            "student, 1 evaluation": lambda: student(z, labels),
            "teacher, 50 evaluations": lambda: teacher.sample(z, labels, steps=50),
        }
        times = card.table(card.turns(calls, rounds=3 if small else 9), "images", count)
    size = f"<p>{count_parameters(teacher):,} parameters, {len(train.items.values):,} images</p>"
    sections = {"The same noise": size + seen, "Times": times}
    return card.write(options, "One evaluation in the place of fifty", sections)


if __name__ == "__main__":
    main()
