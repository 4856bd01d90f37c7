"""``potstill flow train-teacher | distill | sample | evaluate``."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from potstill.core.command import table, verb
from potstill.flow.config import DistillConfig, EvaluateConfig, TeacherConfig

__all__ = ["app"]

app = App(name="flow", help="Make one-step generators of diffusion and flow models.")
verb(app, "train-teacher", "potstill.flow.jobs:TrainTeacher", TeacherConfig)
verb(app, "distill", "potstill.flow.jobs:Distill", DistillConfig)
verb(app, "evaluate", "potstill.flow.jobs:Evaluate", EvaluateConfig)


@app.command
def sample(
    student: Path, out: Path, *, n: int = 64, condition: int | None = None, seed: int = 0
) -> None:
    """Draw images of a student into one picture, or points into a .csv file.

    Args:
        student: Folder of the student.
        out: A .png file, or .csv for points.
        n: How many.
        condition: Class of all; random classes by default.
        seed: Seed of noise and classes.
    """
    from potstill.flow.gallery import write_samples
    from potstill.flow.store import load_student

    found = load_student(student)
    write_samples(found.sample(n, condition, seed), out)
    table(f"samples in {out}", {"samples": n, "evaluations each": found.evaluations})
