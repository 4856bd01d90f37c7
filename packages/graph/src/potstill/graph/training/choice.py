"""Which student suits a graph, found by a short probe on its validation nodes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from potstill.core import Training
from potstill.graph.data.describe import homophily
from potstill.graph.training.protocol import distill, evaluate, methods_for
from potstill.graph.training.recipes import FULL_BATCH, NAMES, Recipe
from potstill.graph.training.scores import SCORES

__all__ = ["Choice", "choose"]

_EPOCHS = 15  # of a probe, for each candidate
_HUBS = 2.0  # deviation of the degrees over their mean from which nodes count alike
_LOST = 0.05  # what a student may stay below its teacher and still pay


class Choice(NamedTuple):
    """What was chosen for a graph, and why.

    Attributes:
        method: Name from `METHODS`.
        recipe: That of the graph, with the reduction that suits its degrees.
        probe: Validation score of each candidate after the probe.
        teacher: Validation score of the teacher.
        text: One line that says so, with a warning where no student will pay.
    """

    method: str
    recipe: Recipe
    probe: dict[str, float]
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
    """Choose a method and a reduction for a graph: 15 epochs of each candidate decide.

    GLNN is taken unless another candidate is better by more than a standard error of the
    validation score: on most graphs the methods differ by less than seeds do.

    Args:
        data: A checked graph.
        z_teacher: The teacher's logits [N C].
        recipe: Sizes, weights and optimizer.
        seed: Seed of weights and dropout.
        training: Options that win over the recipe; their budget does not count here.
        **options: Of `distill`: engine, ...
    """
    degree = torch.bincount(data.edge_index[1], minlength=len(data.y)).float()
    spread = float(degree.std() / degree.mean().clamp_min(1e-9))
    recipe = replace(recipe, reduction="node") if spread > _HUBS else recipe
    short = replace(training, epochs=_EPOCHS, steps=None, seconds=None)
    probe = {
        method: distill(
            data, z_teacher, recipe, method, seed=seed, training=short, **options
        ).accuracy["val"]
        for method in methods_for(data)
    }
    shown, teacher = SCORES[data.metric], evaluate(data, z_teacher)["val"]
    sign, count = shown.sign, int(data.val_mask.sum())
    level = probe["glnn"]
    error = math.sqrt(max(level * (1 - level), 0.01) / count) if shown.unit else 0.02 * abs(level)
    best = max(probe, key=lambda name: sign * probe[name])
    method = best if sign * (probe[best] - level) > error else "glnn"
    return Choice(
        method, recipe, probe, teacher, _said(data, method, recipe, probe, teacher, error)
    )


def _said(
    data: Data, method: str, recipe: Recipe, probe: dict[str, float], teacher: float, error: float
) -> str:
    shown = SCORES[data.metric]

    def figure(value: float) -> str:
        return f"{shown.factor * value:.1f}{shown.unit and ' ' + shown.unit}"

    tried = ", ".join(f"{NAMES[name]} {figure(value)}" for name, value in probe.items())
    about = f"homophily {homophily(data):.2f}, " if data.task == "classes" else ""
    mean = f", mean over {recipe.reduction}s" if method == "ff-g2m" else ""
    text = (
        f"auto: {NAMES[method]}{mean} ({about}{_EPOCHS} epochs each: {tried}; teacher "
        f"{figure(teacher)})"
    )
    allowed = _LOST if shown.unit else _LOST * abs(teacher)
    if method == "mlp" or shown.sign * (probe.get("mlp", math.nan) - teacher) > -error:
        return f"{text}; features alone suffice: no teacher pays here"
    if shown.sign * (teacher - probe[method]) > allowed + error:
        return f"{text}; it may stay below the teacher, whose neighbours know more than features"
    return f"{text}; expect about the teacher's score"
