"""A saved student scored on a graph: by part, and by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch_geometric.data import Data

from potstill.core import Column, ConfigError, Report, fingerprint
from potstill.graph.models.student import MLPStudent
from potstill.graph.training.scores import SCORES, baseline, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["evaluation"]


def evaluation(model: MLPStudent, data: Data, title: str) -> Report:
    """The metric of a graph on its parts, beside what says nothing, and what is taken for what.

    Args:
        model: A saved student.
        data: A graph whose features are as the student takes them.
        title: Title of the page.

    Raises:
        ConfigError: A student of another task, or of other classes.
    """
    names = list(data.get("class_names") or ())
    if model.task != data.task or (names and model.classes and names != list(model.classes)):
        raise ConfigError(
            f"evaluate: the graph must have the {model.task} of the student, "
            f"{', '.join(model.classes) or 'without names'}, got {data.task} "
            f"{', '.join(map(str, names)) or 'without names'}"
        )
    z, shown = model.logits(data.x), SCORES[data.metric]
    report = Report(
        title,
        columns={shown.title: Column(shown.unit, best=shown.best), "nodes": Column()},
        label="part",
        data=fingerprint(data.edge_index, data.y)[:12],
        summary=f"The same answer for every node would reach {shown.factor * baseline(data):.1f}"
        f" {shown.unit}".rstrip()
        + ".",
    )
    for part in ("train", "val", "test"):
        mask = data[f"{part}_mask"]
        if bool(mask.any()):
            figures: dict[str, Any] = {shown.title: shown.factor * score(data, z, mask)}
            report.add(part, **figures, nodes=int(mask.sum()))
    report.bars(shown.title, "Training nodes were seen, test nodes were not.", "By part")
    if data.task == "classes":
        report.plot(
            _table_of(model, data), "Share of the test nodes of a class (row) that are taken for "
            "another (column).", "What is taken for what",
        )  # fmt: skip
    return report


def _table_of(model: MLPStudent, data: Data) -> Any:
    mask = data.test_mask if bool(data.test_mask.any()) else data.val_mask
    y, said, count = data.y[mask], model.predict(data.x)[mask], data.num_classes
    known = said >= 0
    table = torch.zeros(count, count).index_put_(
        (y[known], said[known]), torch.ones(()), accumulate=True
    )
    shares = table / table.sum(1, keepdim=True).clamp_min(1)

    def draw(axes: Axes) -> None:
        names = list(data.get("class_names") or range(count))
        axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(count), names)
        axes.set_yticks(range(count), names)
        axes.set_xlabel("said")
        axes.set_ylabel("true")
        for row in range(count if count <= 12 else 0):
            for column in range(count):
                share = float(shares[row, column])
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center",
                          color="white" if share > 0.5 else "0.3")  # fmt: skip

    return draw
