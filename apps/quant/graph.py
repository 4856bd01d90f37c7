"""An MLP that a GCN has taught: scikit-learn's digits as a graph, five labels a class."""

from __future__ import annotations

import torch
from torch import nn

from apps.tour.graph import SEED
from potstill.core import Distiller
from potstill.graph import (
    GraphToMLP,
    Recipe,
    distill,
    evaluate,
    load,
    objective_for,
    teacher_logits,
    train_teacher,
)
from potstill.quant import Subject


def subject() -> Subject:
    """Test accuracy of the MLP; the teacher is the GCN that taught it in full precision."""
    recipe, data = Recipe(epochs=100), load("digits", seed=SEED)
    data.z_teacher = teacher_logits(train_teacher(data, recipe, seed=SEED).model, data)
    student = distill(data, data.z_teacher, recipe, "glnn", seed=SEED).model

    def distiller(lowered: nn.Module, taught: bool) -> Distiller:
        return GraphToMLP(lowered, objective_for("glnn" if taught else "mlp", recipe, data=data))

    @torch.no_grad()
    def score(lowered: nn.Module) -> float:
        device = next(lowered.parameters()).device
        return 100 * evaluate(data, lowered.eval()(data.x.to(device)))["test"]

    return Subject(student, [data.x], score, distiller, [data], lr=2e-3, unit="%")
