"""Configurations of the commands of ``potstill graph``."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from potstill.core import ConfigError, nearest
from potstill.graph.recipes import NAMES, Recipe, recipe_for

__all__ = ["DiagnoseConfig", "DistillConfig", "TrainConfig"]


@dataclass(frozen=True)
class TrainConfig:
    """What to train on, and how; what is left out is as in the tuned recipe.

    Attributes:
        dataset: Name of a graph: digits, cora, citeseer, photo, cs, ... (digits needs no files).
        teacher: Architecture of the teacher.
        seed: The first seed.
        out: Folder of the results.
        layers: Layers of teacher and student.
        hidden: Width of their hidden layers.
        tau: Temperature of the high-frequency term.
        task_weight: Weight of the labels, in [0, 1]; the teacher's terms get the rest.
        learning_rate: Of the student.
        epochs: At most.
        patience: Epochs without a better validation accuracy.
        reduction: Mean of the low-frequency term: over edges, or over nodes.
        download: Let PyG fetch missing files into the data root.
        device: auto, cpu, cuda or mps.
    """

    dataset: str = "digits"
    teacher: Literal["GCN", "SAGE", "GAT"] = "GCN"
    seed: int = 2022
    out: Path = Path("runs/graph")
    layers: int | None = None
    hidden: int | None = None
    tau: float | None = None
    task_weight: float | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    patience: int | None = None
    reduction: Literal["edge", "node"] | None = None
    download: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    def __post_init__(self) -> None:
        self.recipe()  # checks every number

    def recipe(self) -> Recipe:
        """The tuned recipe of data set and teacher, with what was given."""
        known = {field.name for field in fields(Recipe)} - {"teacher"}
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in known & {field.name for field in fields(self)}
            if getattr(self, name) is not None
        }
        return replace(recipe_for(self.dataset, self.teacher), **given)


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """How to distil and compare.

    Attributes:
        methods: Students to train; the last one is saved.
        seeds: How many seeds, from ``seed`` on.
        hold_out: Share of the test nodes that training never sees; 0 is the transductive case.
        logits: The teacher's logits of all nodes as ``.npy`` [N C], instead of training a teacher.
        kind: What is in ``logits``.
    """

    methods: tuple[str, ...] = ("mlp", "glnn", "ff-g2m")
    seeds: int = 5
    hold_out: float = 0.0
    logits: Path | None = None
    kind: Literal["logits", "probabilities", "log_probabilities"] = "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ConfigError(f"distill: seeds must be at least 1, got {self.seeds}")
        _check_methods("distill", self.methods)
        if not 0 <= self.hold_out < 1:
            raise ConfigError(f"distill: hold_out must be in [0, 1), got {self.hold_out}")
        if self.logits is not None and self.hold_out:
            raise ConfigError(
                "distill: logits must come without hold_out, got both; a teacher of the whole "
                "graph has seen the nodes that are held out"
            )


@dataclass(frozen=True)
class DiagnoseConfig(TrainConfig):
    """What to look at while students train.

    Attributes:
        methods: Students to compare.
        every: Epochs between two looks.
    """

    methods: tuple[str, ...] = ("mlp", "glnn", "lfd", "hfd", "ff-g2m")
    every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ConfigError(f"diagnose: every must be at least 1, got {self.every}")
        _check_methods("diagnose", self.methods)


def _check_methods(name: str, methods: tuple[str, ...]) -> None:
    if not methods:
        raise ConfigError(f"{name}: methods must name at least one, got none")
    for method in methods:
        if method not in NAMES:
            raise ConfigError(f"{name}: no method is called {method!r}; {nearest(method, NAMES)}")
