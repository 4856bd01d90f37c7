"""What a conversion leaves behind: curves, scores and pictures in one JSON file."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from potstill.core import DataError, atomic, provenance, reading
from potstill.nerf.distill.objective import Progression

__all__ = ["Conversion", "load_conversion", "picture", "pixels"]


@dataclass
class Conversion:
    """The report of one conversion; everything that its page is drawn from.

    Attributes:
        teacher: Kind of the teacher.
        student: Kind of the student.
        progression: Terms, and when they counted.
        clock: Clock of the seconds, "wall" or "cpu".
        rows: One a step, as `potstill.core.fit` gives them: loss, terms, seconds; and decibels
            "teacher" and "truth" where the student was judged.
        occupied: Share of occupied cells that came from the teacher.
        head: True where block 2 came from the teacher.
        parameters: Number of the student's parameters.
        bytes: Size of its file.
        scores: Decibels at the end: "teacher", and "truth" where there are images.
        pictures: One a view: PNG files as text under "teacher", "student" and perhaps "truth".
        provenance: Machine, versions, commit, date.
    """

    teacher: str
    student: str
    progression: Progression
    clock: str
    rows: list[dict[str, float]]
    occupied: float
    head: bool
    parameters: int
    bytes: int
    scores: dict[str, float]
    pictures: list[dict[str, str]] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=provenance)

    @property
    def seconds(self) -> float:
        """Of optimisation."""
        return self.rows[-1]["seconds"] if self.rows else 0.0

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Seconds and decibels wherever the student was judged."""
        return [(row["seconds"], row[name]) for row in self.rows if name in row]

    def stages(self) -> list[dict[str, Any]]:
        """Name, steps, seconds and last loss of each stage that took place."""
        found: list[dict[str, Any]] = []
        began = 0.0
        for name, group in groupby(self.rows, _stage):
            rows = list(group)
            until = rows[-1]["seconds"]
            found.append({"stage": name, "steps": len(rows), "until": until,
                          "seconds": until - began, "loss": rows[-1]["loss"]})  # fmt: skip
            began = until
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON."""
        with atomic(path) as temporary:
            temporary.write_text(json.dumps({"format": 1, **asdict(self)}))
        return Path(path)


def _stage(row: dict[str, float]) -> str:
    return "pixels" if "pixel" in row else "points" if "color" in row else "features"


def load_conversion(path: str | os.PathLike[str]) -> Conversion:
    """Read the JSON of `Conversion.save`.

    Raises:
        DataError: No such file, no JSON, or not such a report.
    """
    with reading(path, "the report of a conversion"):
        document = json.loads(Path(path).read_text())
        if document.pop("format", None) != 1:
            raise ValueError("it has no format 1")
        values = document.pop("progression", None) or document.pop("schedule")
        values["clamp"] = tuple(values["clamp"])
        known = {item.name for item in fields(Conversion)}
        made = Conversion(
            progression=Progression(**values), **{k: v for k, v in document.items() if k in known}
        )
        _check(made)
    return made


def _check(made: Conversion) -> None:
    """What a page is drawn from can be drawn: numbers, times of stages, pictures."""
    numbers = [made.scores["teacher"], made.occupied, made.parameters, made.bytes]
    numbers += [*made.scores.values(), *(v for row in made.rows for v in row.values())]
    if wrong := [value for value in numbers if not isinstance(value, int | float)]:
        raise DataError(f"its figures must be numbers, got {wrong[0]!r}")
    made.stages()
    for view in made.pictures:
        for text in view.values():
            pixels(text)


def picture(image: Tensor) -> str:
    """An image [H W 3] in [0, 1] as text: a PNG in base64."""
    from PIL import Image

    out = io.BytesIO()
    array = (image.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(array).save(out, format="png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def pixels(text: str) -> np.ndarray:
    """The image of `picture`, [H W 3] in [0, 1]."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255
