"""Teachers, students and what they reach: the FF-G2M protocol on `potstill.core.fit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import index_to_mask

from potstill.core import (
    ConfigError,
    Engine,
    Objective,
    Training,
    Validation,
    generator,
    nearest,
    seed_all,
)
from potstill.core.engine import fit_with
from potstill.graph.criteria.frequency import (
    HighFrequency,
    LowFrequency,
    MatchValues,
    SoftLabel,
)
from potstill.graph.criteria.peers import HGMD, KRD, reliability
from potstill.graph.data.check import check_graph
from potstill.graph.data.splits import hold_out
from potstill.graph.data.tensors import is_sparse, rows
from potstill.graph.models.student import MLPStudent
from potstill.graph.models.teachers import make_teacher
from potstill.graph.training.distiller import GraphToMLP, Supervised
from potstill.graph.training.recipes import FULL_BATCH, Recipe, check_training
from potstill.graph.training.scale import check_memory
from potstill.graph.training.scores import SCORES, score, task_loss

__all__ = [
    "METHODS",
    "Trained",
    "distill",
    "evaluate",
    "methods_for",
    "objective_for",
    "run_protocol",
    "teacher_logits",
    "train_teacher",
    "with_reliability",
]

Progress = bool | str | Callable[[Any, float], None]


class Given(nn.Module):
    """A teacher of which only the logits are known."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.register_buffer("z", z)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Any:
        """The logits; they are those of one graph."""
        return self.z


@dataclass
class Trained:
    """A model with the weights of its best validation epoch, and what it reached.

    Attributes:
        model: In eval mode, and on the device where it was before: models are made on the CPU.
        accuracy: The metric of the graph, shares in [0, 1] but for values: ``val``, ``test`` where
            there are test nodes, and ``inductive`` and ``production`` where nodes were held out.
        history: One row an epoch.
    """

    model: Any
    accuracy: dict[str, float]
    history: Sequence[dict[str, float]] = field(repr=False)

    @property
    def epochs(self) -> int:
        """How many were run."""
        return len(self.history)


def train_teacher(
    data: Data,
    recipe: Recipe,
    *,
    seed: int = 0,
    model: nn.Module | None = None,
    training: Training = FULL_BATCH,
    engine: Engine | None = None,
    progress: Progress = False,
    run: Path | str | None = None,
) -> Trained:
    """Train a GNN on the labels of a graph, full batch, and keep the best validation weights.

    Args:
        data: A checked graph (`check_graph`, `load`).
        recipe: Its teacher, sizes and optimizer.
        seed: Seed of weights and dropout; it takes the place of that of ``training``.
        model: Any module with ``forward(x, edge_index)`` instead of the recipe's.
        training: Options that win over the recipe where they are given.
        engine: Device and precision; those of ``training`` by default.
        progress: As of `potstill.core.fit`.
        run: Folder for checkpoints and history; a finished run found there is read back.

    Raises:
        ConfigError: An option of ``training`` that a step on a whole graph cannot honour.
        DataError: The graph does not fit into memory.
    """
    seed_all("teacher", seed)
    if model is None:
        sizes = (data.x.shape[1], recipe.hidden, recipe.layers, data.num_classes)
        model = make_teacher(recipe.teacher, *sizes, dropout=recipe.teacher_dropout)
    distiller = Supervised(model, Objective(task=(1.0, task_loss(data, recipe.balanced))))
    own = _settled(replace(training, seed=seed), recipe, recipe.teacher_lr)
    history = _fit(distiller, data, recipe, own, engine, progress=progress, run=run)
    return Trained(model, evaluate(data, teacher_logits(model, data)), history)


def distill(
    data: Data,
    z_teacher: Tensor | None,
    recipe: Recipe,
    method: str | Objective = "ff-g2m",
    *,
    seed: int = 0,
    student: nn.Module | None = None,
    validation: Callable[[nn.Module], Any] | None = None,
    training: Training = FULL_BATCH,
    engine: Engine | None = None,
    progress: Progress = False,
    run: Path | str | None = None,
) -> Trained:
    """Train an MLP to predict from features alone what the GNN predicts with edges.

    Args:
        data: A checked graph. All its nodes are matched, labelled or not: for the inductive case
            pass the observed graph of `hold_out`.
        z_teacher: The teacher's logits [N C], e.g. of `teacher_logits` or `check_logits`; None for
            the method ``mlp``.
        recipe: Sizes, weights and optimizer.
        method: One of `METHODS`, or an objective with the term ``task`` and any others. ``krd``
            reads ``data.reliability`` [N], which `with_reliability` measures.
        seed: Seed of weights and dropout; it takes the place of that of ``training``.
        student: Module to train instead of the recipe's MLP.
        validation: Score of a student; accuracy on the validation nodes by default.
        training: Options that win over the recipe where they are given.
        engine: Device and precision; those of ``training`` by default.
        progress: As of `potstill.core.fit`.
        run: Folder for checkpoints and history; a finished run found there is read back.

    Returns:
        The student with the weights of its best validation epoch.

    Raises:
        ConfigError: An unknown method, ``krd`` without reliability, or an option of ``training``
            that a step on a whole graph cannot honour.
        DataError: The graph does not fit into memory.

    Example:
        >>> from potstill.graph import load
        >>> data = load("digits")
        >>> recipe = Recipe(epochs=5)
        >>> teacher = train_teacher(data, recipe)
        >>> result = distill(data, teacher_logits(teacher.model, data), recipe)
        >>> sorted(result.history[0])[:3]
        ['high', 'loss', 'low']
    """
    seed_all("student", seed)
    if student is None:
        sizes = (data.x.shape[1], recipe.hidden, recipe.layers, data.num_classes)
        task: Any = data.get("task") or "classes"
        student = MLPStudent(*sizes, recipe.student_dropout, norm=recipe.norm, task=task)
    if not isinstance(method, Objective):
        method = objective_for(method, recipe, data.get("reliability"), data)
    taught = data.__copy__()
    taught.z_teacher = z_teacher
    own = _settled(replace(training, seed=seed), recipe, recipe.lr)
    history = _fit(
        GraphToMLP(student, method), taught, recipe, own, engine, validation,
        progress=progress, run=run,
    )  # fmt: skip
    with torch.no_grad():
        x = data.x.to(next(student.parameters()).device)
        return Trained(student, evaluate(data, student(x)), history)


def objective_for(
    method: str, recipe: Recipe, rho: Tensor | None = None, data: Data | None = None
) -> Objective:
    """The terms of a method, weighted as FF-G2M does: labels and teacher share a weight of one.

    Args:
        method: One of `METHODS`.
        recipe: Weights and temperatures.
        rho: Reliability of the teacher [N], for ``krd``.
        data: The graph; its task chooses the loss of the labels, one class a node by default.

    Raises:
        ConfigError: An unknown method, ``krd`` without ``rho``, or a method that compares
            distributions over classes where there are several labels or values.
    """
    make = METHODS.get(method.lower())
    if make is None:
        raise ConfigError(
            f"objective_for: no method is called {method!r}; {nearest(method, METHODS)}"
        )
    terms = make(recipe)
    task: Any = None if data is None else data.get("task")
    labelled = F.cross_entropy if data is None else task_loss(data, recipe.balanced)
    if terms and task in ("labels", "values"):
        if method.lower() != "glnn":
            raise ConfigError(
                f"objective_for: {method} compares distributions over classes, and the graph has "
                f"{task}; take glnn"
            )
        terms = {"soft": MatchValues(task)}
    if method.lower() == "krd":
        if rho is None:
            raise ConfigError(
                "objective_for: krd must have the reliability of the teacher, got None; pass the "
                "teacher to with_reliability, or take krd-entropy, which needs its logits only"
            )
        terms["krd"].rho = rho
    if not terms:
        return Objective(task=(1.0, labelled))
    share = 1 - recipe.task_weight
    matched = {name: (share, criterion) for name, criterion in terms.items()}
    return Objective({"task": (recipe.task_weight, labelled), **matched})


METHODS: dict[str, Callable[[Recipe], dict[str, nn.Module]]] = {
    "mlp": lambda recipe: {},
    "glnn": lambda recipe: {"soft": SoftLabel()},
    "lfd": lambda recipe: {"low": LowFrequency(recipe.reduction)},
    "hfd": lambda recipe: {"high": HighFrequency(recipe.tau)},
    "ff-g2m": lambda recipe: {
        "low": LowFrequency(recipe.reduction),
        "high": HighFrequency(recipe.tau),
    },
    "krd": lambda recipe: {"krd": KRD(recipe.temperature, momentum=0.9, warmup=50, loops=True)},
    "krd-entropy": lambda recipe: {"soft": SoftLabel(), "krd": KRD(recipe.temperature)},
    "hgmd": lambda recipe: {
        "hgmd": HGMD(recipe.temperature, 5.0, "mixup", beta=0.25, span=recipe.epochs, loops=True)
    },
    "hgmd-weight": lambda recipe: {"soft": SoftLabel(), "hgmd": HGMD(recipe.temperature)},
}
"""Terms besides ``task``, by method; ``krd`` and ``hgmd`` are as published."""


def methods_for(data: Data) -> tuple[str, ...]:
    """The methods that are compared on a graph where none is named."""
    if data.get("task") in ("labels", "values"):
        return ("glnn",) if data.get("label_free") else ("mlp", "glnn")
    return ("glnn", "ff-g2m") if data.get("label_free") else ("mlp", "glnn", "ff-g2m")


@torch.no_grad()
def with_reliability(data: Data, teacher: nn.Module, seed: int = 0) -> Data:
    """A shallow copy of a graph with the ``reliability`` [N] of a teacher, as KRD measures it.

    Noise is added to all features, so that sparse ones become dense.

    Args:
        data: A checked graph.
        teacher: Any module with ``forward(x, edge_index)``.
        seed: Seed of the noise.
    """
    x = data.x.to_dense() if is_sparse(data.x) else data.x

    def logits(noisy: Tensor) -> Tensor:
        moved = data.__copy__()
        moved.x = noisy
        return teacher_logits(teacher, moved)

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(generator("reliability", seed).initial_seed())
        rho = reliability(logits, x)
    data = data.__copy__()
    data.reliability = rho
    return data


@torch.no_grad()
def teacher_logits(model: nn.Module, data: Data) -> Tensor:
    """Logits of a model for all nodes of a graph, [N C], in eval mode, on the CPU."""
    was = model.training
    model.eval()
    device = next(model.parameters()).device
    weight = data.get("edge_weight")
    inputs = [data.x, data.edge_index, *([] if weight is None else [weight])]
    z: Tensor = model(*(value.to(device) for value in inputs))
    model.train(was)
    return z.cpu()


def evaluate(data: Data, z: Tensor) -> dict[str, float]:
    """The metric of the graph for outputs [N C], on the validation and the test nodes."""
    parts = {"val": data.val_mask, "test": data.test_mask}
    return {k: score(data, z, mask) for k, mask in parts.items() if bool(mask.any())}


def run_protocol(
    data: Data,
    recipe: Recipe,
    methods: tuple[str, ...] = ("mlp", "glnn", "ff-g2m"),
    *,
    seed: int = 0,
    hold_out_rate: float = 0.0,
    z_teacher: Tensor | None = None,
    training: Training = FULL_BATCH,
    engine: Engine | None = None,
    progress: Callable[[str], Progress] = lambda text: False,
    run: Path | str | None = None,
) -> dict[str, Trained]:
    """One teacher and its students, all scored alike.

    Args:
        data: A checked graph.
        recipe: Sizes, weights and optimizer of all of them.
        methods: Names from `METHODS`.
        seed: Seed of everything that is drawn.
        hold_out_rate: Share of the test nodes that training never sees, with their edges; 0 is the
            transductive protocol. Scores are then also ``inductive`` (those nodes: students see
            their features only, the teacher their edges too) and ``production`` (both, weighted by
            the rate).
        z_teacher: Logits [N C] of a teacher that is not ours; then none is trained, and no node can
            be held out.
        training: Options that win over the recipe; its ``lr`` is that of the students.
        engine: Device and precision; those of ``training`` by default.
        progress: Label to progress option of `fit`.
        run: Folder with one folder for each of them; what is finished there is read back.

    Returns:
        By name; the teacher is ``"teacher"``.

    Raises:
        ConfigError: ``z_teacher`` with ``hold_out_rate``, or with ``krd``.
    """
    if z_teacher is not None and hold_out_rate:
        raise ConfigError(
            "run_protocol: z_teacher must come without hold_out_rate, got both; a teacher of the "
            "whole graph has seen the nodes that are held out: pass hold_out(data).observed, and "
            "logits of its nodes"
        )
    held = hold_out(data, hold_out_rate, seed) if hold_out_rate else None
    observed = data if held is None else held.observed

    def options(name: str) -> dict[str, Any]:
        return {
            "seed": seed, "engine": engine, "progress": progress(name),
            "run": None if run is None else Path(run, name),
            "training": training if name != "teacher" else replace(training, lr=None),
        }  # fmt: skip

    if z_teacher is None:
        teacher = train_teacher(observed, recipe, **options("teacher"))
        z_teacher = teacher_logits(teacher.model, observed)
        if "krd" in methods:
            observed = with_reliability(observed, teacher.model, seed)
    else:
        teacher = Trained(Given(z_teacher), evaluate(observed, z_teacher), [])
    found = {"teacher": teacher}
    for method in methods:
        found[method] = distill(observed, z_teacher, recipe, method, **options(method))
    if held is not None:
        for trained in found.values():
            _score_held_out(trained, data, held.held_out, hold_out_rate)
    return found


def _score_held_out(trained: Trained, data: Data, nodes: Tensor, rate: float) -> None:
    graph_free = isinstance(trained.model, MLPStudent)
    z = trained.model.logits(data.x) if graph_free else teacher_logits(trained.model, data)
    found = trained.accuracy
    found["inductive"] = score(data, z, index_to_mask(nodes, size=len(data.y)))
    found["production"] = rate * found["inductive"] + (1 - rate) * found["test"]


def _settled(training: Training, recipe: Recipe, lr: float) -> Training:
    """Options of training, with those of the recipe where none is given."""
    check_training(training)
    budget = training.epochs or training.steps or training.seconds
    decay = training.weight_decay
    return replace(
        training,
        lr=training.lr or lr,
        epochs=training.epochs if budget else recipe.epochs,
        weight_decay=recipe.weight_decay if decay is None else decay,
    )


def _fit(
    distiller: Any,
    data: Data,
    recipe: Recipe,
    training: Training,
    engine: Engine | None,
    validation: Callable[[nn.Module], Any] | None = None,
    **options: Any,
) -> Sequence[dict[str, float]]:
    if "checked" not in data:
        data = check_graph(data)
    with ExitStack() as stack:
        engine = engine or stack.enter_context(Engine(training.device, training.precision))
        if engine.device.type == "cpu":
            check_memory(data, recipe)
        data = engine.place(data.__copy__())  # `Data.to` moves in place
        seen, inputs = data.val_mask, [data.x]
        if isinstance(distiller, GraphToMLP):
            inputs, seen = [rows(data.x, seen.nonzero()[:, 0])], slice(None)  # nodes stand alone
        else:
            inputs += [data[name] for name in ("edge_index", "edge_weight") if name in data]
        part = data.__copy__()
        part.y = data.y[data.val_mask]
        everyone = torch.ones(len(part.y), dtype=torch.bool, device=part.y.device)
        sign = SCORES[data.get("metric") or "accuracy"].sign

        def validate(model: nn.Module) -> dict[str, float]:
            # One pass an epoch: the test nodes are only looked at once, when training is over.
            return {"val": sign * score(part, model(*inputs)[seen], everyone)}

        best = Validation(validation or validate, every=1, patience=recipe.patience, ties="latest")
        return fit_with(training, distiller, [data], validation=best, engine=engine, **options)
