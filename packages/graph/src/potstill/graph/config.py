"""Configurations of the commands of ``potstill graph``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from potstill.core import ConfigError, Training, nearest
from potstill.core.command import as_dict
from potstill.graph.training.recipes import FULL_BATCH, NAMES, Recipe, check_training, recipe_for

__all__ = ["DiagnoseConfig", "DistillConfig", "GraphConfig", "TrainConfig"]

_RUNS = Path("runs/graph")


@dataclass(frozen=True)
class GraphConfig:
    """Say what is found in a graph of your own, or in one that is known by name.

    Attributes:
        dataset: Name of a graph (digits, cora, citeseer, photo, cs, ...; digits needs no files), or
            a path: a folder with edges.csv and features.csv, .npz, .pt of PyG, OGB's layout.
        target: Type of the nodes that are classified, in heterogeneous graphs.
        split: Which of several stored splits; by default they take turns with the seed.
        task: Kind of prediction; what the labels look like by default.
        metric: Score; by the task, and ROC-AUC or F1 where most nodes have one class.
        directed: Keep edges that have one direction; else the other one is added.
        scaling: Treatment of features; auto standardises dense ones that leave [-1, 1].
        fill: Put the mean of the feature in the place of NaN, instead of refusing it.
        download: Let PyG fetch missing files into the data root.
    """

    dataset: str = "digits"
    _: KW_ONLY
    target: str | None = None
    split: int | None = None
    task: Literal["classes", "labels", "values"] | None = None
    metric: Literal["accuracy", "f1", "roc_auc", "mae"] | None = None
    directed: bool = False
    scaling: Literal["auto", "standard", "row", "none"] = "auto"
    fill: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        if self.is_file():
            return
        own = [name for name in ("target", "task", "directed", "fill") if getattr(self, name)]
        own += ["scaling"] if self.scaling != "auto" else []
        if own:
            raise ConfigError(
                f"{own[0]} must be left out for a graph that is known by name, got "
                f"{getattr(self, own[0])!r} and {self.dataset!r}; it is for files"
            )

    def is_file(self) -> bool:
        """Whether the graph is one of the user's own: a path, not a name."""
        path = Path(self.dataset)
        return bool(path.suffix) or len(path.parts) > 1 or path.is_dir()


@dataclass(frozen=True)
class TrainConfig(GraphConfig):
    """Train a teacher, and write its logits of all nodes to ``logits.npy``.

    Options that are not given are as in the tuned recipe of the data set.

    Attributes:
        teacher: Architecture of the teacher.
        out: Folder of the results; the default stands for one below it for each verb and set of
            options.
        layers: Layers of teacher and student.
        hidden: Width of their hidden layers.
        patience: Epochs without a better validation score before training stops.
        norm: Normalisation of the hidden layers of students.
        balanced: Let every class of the labels weigh alike.
        training: Budget, optimizer, precision, device and seed; a step sees the whole graph.
    """

    teacher: Literal["GCN", "SAGE", "SAGE-mean", "GAT", "APPNP"] = "GCN"
    out: Annotated[Path, Parameter(alias="-o")] = _RUNS
    layers: int | None = None
    hidden: int | None = None
    patience: int | None = None
    norm: Literal["none", "batch"] | None = None
    balanced: bool = False
    training: Training = FULL_BATCH

    def __post_init__(self) -> None:
        super().__post_init__()
        check_training(self.training)
        self.recipe()  # checks every number
        if self.out == _RUNS:
            object.__setattr__(self, "out", _folder(self))

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
class StudentsConfig(TrainConfig):
    """Train a GNN, and distil it into MLPs.

    Attributes:
        methods: Students to train; by default those that suit the graph.
        teacher_lr: Learning rate of the teacher; ``--lr`` is that of the students.
        tau: Temperature of the high-frequency term.
        task_weight: Weight of the labels, in [0, 1]; the teacher's terms get the rest.
        reduction: Mean of the low-frequency term: over edges, or over nodes.
    """

    methods: tuple[str, ...] = ()
    teacher_lr: float | None = None
    tau: float | None = None
    task_weight: float | None = None
    reduction: Literal["edge", "node"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for method in self.methods:
            if method not in NAMES:
                raise ConfigError(f"no method is called {method!r}; {nearest(method, NAMES)}")


@dataclass(frozen=True)
class DistillConfig(StudentsConfig):
    """Train a GNN, distil it into MLPs, and compare accuracy, size and latency.

    The default takes a minute: scikit-learn's digits, five seeds, no network and no files. The
    student of the last method is saved.

    Attributes:
        seeds: Number of seeds, from ``--seed`` on; FF-G2M's own five begin at 2022.
        auto: Choose between a plain MLP and GLNN by a short probe of the features, and say so.
        hold_out: Share of the test nodes that training never sees; 0 is the transductive case.
        logits: A teacher's logits of all nodes as ``.npy`` [N C], instead of training a teacher;
            all seeds then share the split of the first, which must be that of the teacher. A graph
            of your own may then have no labels.
        kind: Kind of the numbers in ``logits``.
    """

    seeds: int = 5
    hold_out: float = 0.0
    logits: Path | None = None
    kind: Literal["logits", "probabilities", "log_probabilities", "embeddings"] = "logits"
    auto: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise ConfigError(f"distill: seeds must be at least 1, got {self.seeds}")
        if self.auto and self.methods:
            raise ConfigError("distill: auto must come without methods, got both")
        if not 0 <= self.hold_out < 1:
            raise ConfigError(f"distill: hold_out must be in [0, 1), got {self.hold_out}")
        if self.logits is not None and self.hold_out:
            raise ConfigError(
                "distill: logits must come without hold_out, got both; a teacher of the whole "
                "graph has seen the nodes that are held out"
            )
        if self.logits is not None and "krd" in self.methods:
            raise ConfigError(
                "distill: krd must come without logits, got both; it adds noise to what the "
                "teacher reads: take krd-entropy, which needs logits only"
            )


@dataclass(frozen=True)
class DiagnoseConfig(StudentsConfig):
    """Show what students take over from their teacher while they train, and what they lose.

    Attributes:
        every: Epochs between two measurements.
    """

    methods: tuple[str, ...] = ("mlp", "glnn", "lfd", "hfd", "ff-g2m")
    every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ConfigError(f"diagnose: every must be at least 1, got {self.every}")


def _folder(config: TrainConfig) -> Path:
    """A folder for these options: other ones do not meet a run that is there."""
    movable = {"out", "download"}
    values = {k: v for k, v in as_dict(config).items() if k not in movable}
    values["training"] = {k: v for k, v in values["training"].items() if k not in _MOVABLE}
    key = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
    verb = type(config).__name__.removesuffix("Config").lower()
    name = f"{verb}-{Path(config.dataset).stem}-{config.teacher}-{key}"
    return _RUNS / name.lower()


_MOVABLE = (
    "device", "parallel", "workers", "checkpoint_minutes", "checkpoint_asynchronous", "tensorboard",
)  # fmt: skip
