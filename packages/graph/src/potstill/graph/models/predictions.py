"""Files of predictions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core import atomic
from potstill.graph.models.student import MLPStudent

__all__ = ["write_predictions"]


def write_predictions(model: MLPStudent, found: Any, path: Path) -> None:
    """Write what `MLPStudent.predict` or `predict_proba` gave: ``.csv`` by name, else ``.npy``.

    Args:
        model: The student, which knows the names of its classes.
        found: Classes [N], labels or values [N K], or probabilities [N C].
        path: The file; another suffix than ``.csv`` becomes ``.npy``.
    """
    if path.suffix != ".csv":
        with atomic(path.with_suffix(".npy")) as temporary:
            np.save(temporary, found)
        return
    if found.ndim == 1:
        header = ["node", "class"]
        rows = [[model.classes[k] if model.classes and k >= 0 else k] for k in found.tolist()]
    else:
        header = ["node", *(model.classes or map(str, range(found.shape[1])))]
        rows = found.tolist()
    with (
        atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(header)
        table.writerows([node, *row] for node, row in enumerate(rows))
