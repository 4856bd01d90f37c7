"""Whether a graph needs a teacher at all, found by a short probe of its features."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor
from torch_geometric.data import Data

from potstill.core import Training
from potstill.graph.data.describe import homophily
from potstill.graph.training.protocol import distill, evaluate
from potstill.graph.training.recipes import FULL_BATCH, NAMES, Recipe
from potstill.graph.training.scores import SCORES, baseline

__all__ = ["Choice", "choose"]

_EPOCHS = 20  # of the probe


class Choice(NamedTuple):
    """What was chosen for a graph, and why.

    Attributes:
        method: Name from `METHODS`.
        probe: Validation score of a plain MLP after the probe; NaN for a graph without labels.
        teacher: Validation score of the teacher.
        text: One line that says so, with a warning where no student will pay.
    """

    method: str
    probe: float
    teacher: float
    text: str


def choose(
    data: Data,
    z_teacher: Tensor,
    recipe: Recipe,
    *,
    seed: int = 0,
    training: Training = FULL_BATCH,
    **options: Any,
) -> Choice:
    """Choose between a plain MLP and GLNN: 20 epochs on the labels alone decide.

    A plain MLP is taken where it meets the teacher on the validation nodes within a standard error:
    there features suffice, and a teacher would mislead. Else it is GLNN; FF-G2M differs from it by
    less than seeds do on most graphs, and no probe of a few epochs tells them apart.

    Args:
        data: A checked graph.
        z_teacher: The teacher's logits [N C].
        recipe: Sizes, weights and optimizer.
        seed: Seed of weights and dropout.
        training: Options that win over the recipe; their budget does not count here.
        **options: Of `distill`: engine, ...
    """
    shown, teacher = SCORES[data.metric], evaluate(data, z_teacher)["val"]
    if data.get("label_free"):
        return Choice("glnn", math.nan, teacher, "auto: GLNN, since there are no labels")
    short = replace(training, epochs=_EPOCHS, steps=None, seconds=None)
    probed = distill(data, None, recipe, "mlp", seed=seed, training=short, **options)
    probe, count = probed.accuracy["val"], int(data.val_mask.sum())
    error = math.sqrt(max(teacher * (1 - teacher), 0.01) / count) if shown.unit else 0.02 * teacher
    suffices = shown.sign * (probe - teacher) > -error
    nothing = shown.sign * (probe - baseline(data, "val")) < error
    method = "mlp" if suffices else "glnn"
    edges = f"homophily {homophily(data):.2f}, " if data.task == "classes" else ""
    unit = f" {shown.unit}".rstrip()
    text = (
        f"auto: {NAMES[method]} ({edges}{shown.title} of features alone after {_EPOCHS} epochs "
        f"{shown.factor * probe:.1f}{unit}, of the teacher {shown.factor * teacher:.1f}{unit})"
    )
    if suffices:
        return Choice(method, probe, teacher, f"{text}; features suffice, no teacher pays here")
    if nothing:
        said = "features say nothing so far: a student may stay far below its teacher"
        return Choice(method, probe, teacher, f"{text}; {said}")
    return Choice(method, probe, teacher, f"{text}; expect about the teacher's score")
