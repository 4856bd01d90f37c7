"""Recipes: the tuned hyper-parameters of FF-G2M by data set and teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from potstill.core import ConfigError, Training, nearest

__all__ = ["FULL_BATCH", "NAMES", "TEACHERS", "Recipe", "check_training", "recipe_for"]

FULL_BATCH = Training(batch=1)
"""Options of training on a whole graph; what is None is as in the recipe."""

NAMES = {
    "mlp": "MLP, labels only",
    "glnn": "GLNN",
    "lfd": "low frequency only",
    "hfd": "high frequency only",
    "ff-g2m": "FF-G2M",
    "krd": "KRD",
    "krd-entropy": "KRD, entropy",
    "hgmd": "HGMD",
    "hgmd-weight": "HGMD, weights",
}
"""Methods that a student can be trained by, and how they are called in tables."""


TEACHERS = ("GCN", "SAGE", "SAGE-mean", "GAT", "APPNP")
"""Architectures of teachers."""


@dataclass(frozen=True)
class Recipe:
    """How a teacher and its student are trained.

    Attributes:
        teacher: ``GCN``, ``SAGE`` (the "gcn" aggregator of FF-G2M's tables), ``SAGE-mean``, ``GAT``
            or ``APPNP``.
        layers: Layers of teacher and student.
        hidden: Width of their hidden layers.
        student_dropout: In [0, 1).
        teacher_dropout: In [0, 1).
        tau: Temperature of the high-frequency term.
        task_weight: Weight of the labels; the terms that match the teacher get the rest.
        lr: Learning rate of the student.
        teacher_lr: Learning rate of the teacher.
        weight_decay: Weight decay of both.
        epochs: Largest number of epochs; full batch, so an epoch is a step.
        patience: Epochs without a better validation accuracy (an equal one counts as better).
        reduction: Mean of the low-frequency term, ``"edge"`` or ``"node"``.
        temperature: Temperature of KRD and HGMD.
        norm: ``"batch"`` normalises the hidden layers of the student.
        balanced: Give every class of the labels the same weight.
    """

    teacher: str = "GCN"
    layers: int = 2
    hidden: int = 128
    student_dropout: float = 0.5
    teacher_dropout: float = 0.5
    tau: float = 1.5
    task_weight: float = 0.1
    lr: float = 0.01
    teacher_lr: float = 0.01
    weight_decay: float = 5e-4
    epochs: int = 500
    patience: int = 50
    reduction: Literal["edge", "node"] = "edge"
    temperature: float = 1.0
    norm: Literal["none", "batch"] = "none"
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.teacher not in TEACHERS:
            raise ConfigError(
                f"Recipe: teacher must be one of {', '.join(TEACHERS)}, got {self.teacher!r}"
            )
        if self.norm not in ("none", "batch"):
            raise ConfigError(f"Recipe: norm must be none or batch, got {self.norm!r}")
        if not 0 <= self.task_weight <= 1:
            raise ConfigError(f"Recipe: task_weight must be in [0, 1], got {self.task_weight}")
        if not self.tau > 0:
            raise ConfigError(f"Recipe: tau must be > 0, got {self.tau}")
        for name in ("layers", "hidden", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Recipe: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "teacher_lr", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Recipe: {name} must be > 0, got {getattr(self, name)}")
        if self.reduction not in ("edge", "node"):
            raise ConfigError(f"Recipe: reduction must be edge or node, got {self.reduction!r}")


# layers, hidden, dropout of the student, dropout of the teacher, tau, weight of the task
_TUNED: dict[str, dict[str, tuple[int, int, float, float, float, float]]] = {
    "cora": {
        "GCN": (3, 512, 0.6, 0.5, 1.5, 0.4),
        "GAT": (3, 1024, 0.3, 0.6, 1.2, 0.5),
        "SAGE": (3, 512, 0.4, 0.3, 1.3, 0.5),
    },
    "citeseer": {
        "GCN": (2, 256, 0.5, 0.5, 1.5, 0.1),
        "GAT": (2, 2048, 0.4, 0.5, 1.0, 0.1),
        "SAGE": (2, 1024, 0.5, 0.5, 1.2, 0.1),
    },
    "pubmed": {
        "GCN": (2, 1024, 0.3, 0.6, 1.5, 0.0),
        "GAT": (2, 2048, 0.3, 0.5, 1.2, 0.0),
        "SAGE": (2, 2048, 0.6, 0.3, 1.3, 0.0),
    },
    "cs": {
        "GCN": (2, 1024, 0.5, 0.6, 1.5, 0.3),
        "GAT": (2, 128, 0.4, 0.5, 1.1, 0.3),
        "SAGE": (2, 256, 0.6, 0.3, 1.4, 0.5),
    },
    "physics": {
        "GCN": (2, 2048, 0.3, 0.4, 1.2, 0.2),
        "GAT": (2, 256, 0.3, 0.4, 1.4, 0.3),
        "SAGE": (2, 1024, 0.5, 0.6, 1.1, 0.5),
    },
    "photo": {
        "GCN": (3, 2048, 0.5, 0.6, 1.3, 0.1),
        "GAT": (3, 256, 0.3, 0.3, 1.4, 0.3),
        "SAGE": (3, 1024, 0.4, 0.4, 1.5, 0.2),
    },
}


def recipe_for(dataset: str, teacher: str = "GCN") -> Recipe:
    """The tuned row for a data set and a teacher; a general one for data sets without.

    Source: parameters published with Wu et al. (FF-G2M), AAAI 2023. ``cpf-cora`` and
    ``cpf-citeseer`` share the rows of the public splits.

    Raises:
        ConfigError: An unknown teacher.

    Example:
        >>> recipe_for("cora", "GCN").hidden, recipe_for("my-graph").hidden
        (512, 128)
    """
    if teacher not in TEACHERS:
        raise ConfigError(
            f"recipe_for: teacher must be one of {', '.join(TEACHERS)}, got {teacher!r}; "
            f"{nearest(teacher.upper(), TEACHERS)}"
        )
    name = dataset.lower().removeprefix("cpf-")
    row = _TUNED.get(name, {}).get(teacher)
    if row is None:
        return Recipe(teacher=teacher)
    layers, hidden, student, own, tau, task = row
    tuned = Recipe(teacher, layers, hidden, student, own, tau, task)
    return replace(tuned, lr=0.001) if name == "photo" else tuned


def check_training(training: Training) -> None:
    """Refuse the options of training that a step on a whole graph cannot honour.

    Raises:
        ConfigError: Such an option; names it.
    """
    only = {"batch": 1, "accumulate": 1, "workers": 0, "parallel": "ddp"}
    for name, value in only.items():
        if (got := getattr(training, name)) != value:
            raise ConfigError(
                f"Training: {name} must be {value} where a step sees the whole graph, got {got}"
            )
