"""Teachers, students and what they reach: the FF-G2M protocol on `potstill.core.fit`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from potstill.core import (
    ConfigError,
    Engine,
    Objective,
    Validation,
    accuracy,
    fit,
    nearest,
    seed_all,
)
from potstill.graph.check import check_graph
from potstill.graph.criteria import HighFrequency, LowFrequency, SoftLabel
from potstill.graph.distiller import GraphToMLP, Supervised
from potstill.graph.models import MLPStudent, make_teacher
from potstill.graph.peers import HGMD, KRD
from potstill.graph.recipes import Recipe
from potstill.graph.scale import check_memory
from potstill.graph.splits import hold_out
from potstill.graph.tensors import rows

__all__ = [
    "METHODS",
    "Trained",
    "distill",
    "evaluate",
    "objective_for",
    "run_protocol",
    "teacher_logits",
    "train_teacher",
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
        accuracy: Shares in [0, 1]: ``val``, ``test`` where there are test nodes, and ``inductive``
            and ``production`` where nodes were held out.
        history: One row an epoch.
    """

    model: Any
    accuracy: dict[str, float]
    history: list[dict[str, float]] = field(repr=False)

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
    engine: Engine | None = None,
    progress: Progress = False,
    run: Path | str | None = None,
) -> Trained:
    """Train a GNN on the labels of a graph, full batch, and keep the best validation weights.

    Args:
        data: A checked graph (`check_graph`, `load`).
        recipe: Its teacher, sizes and optimizer.
        seed: Draws weights and dropout.
        model: Any module with ``forward(x, edge_index)`` instead of the recipe's.
        engine: Device and precision.
        progress: As of `potstill.core.fit`.
        run: Folder for checkpoints and history.
    """
    seed_all("teacher", seed)
    if model is None:
        sizes = (data.x.shape[1], recipe.hidden, recipe.layers, data.num_classes)
        model = make_teacher(recipe.teacher, *sizes, dropout=recipe.teacher_dropout)
    distiller = Supervised(model, Objective(task=(1.0, F.cross_entropy)))
    history = _fit(
        distiller, data, recipe, recipe.teacher_learning_rate, seed, engine, progress, run
    )
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
    engine: Engine | None = None,
    progress: Progress = False,
    run: Path | str | None = None,
) -> Trained:
    """Train an MLP to say without edges what the teacher says with them.

    Args:
        data: A checked graph. All its nodes are matched, labelled or not: for the inductive case
            pass the observed graph of `hold_out`.
        z_teacher: The teacher's logits [N C], e.g. of `teacher_logits` or `check_logits`; None for
            the method ``mlp``.
        recipe: Sizes, weights and optimizer.
        method: One of `METHODS`, or an objective with the term ``task`` and any others.
        seed: Draws weights and dropout.
        student: Instead of the recipe's MLP.
        validation: Score of a student; accuracy on the validation nodes by default.
        engine: Device and precision.
        progress: As of `potstill.core.fit`.
        run: Folder for checkpoints and history.

    Returns:
        The student with the weights of its best validation epoch.

    Example:
        >>> from potstill.graph.data import load
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
        student = MLPStudent(*sizes, dropout=recipe.student_dropout)
    objective = method if isinstance(method, Objective) else objective_for(method, recipe)
    taught = data.__copy__()
    taught.z_teacher = z_teacher
    distiller = GraphToMLP(student, objective)
    history = _fit(
        distiller, taught, recipe, recipe.learning_rate, seed, engine, progress, run, validation
    )
    with torch.no_grad():
        x = data.x.to(next(student.parameters()).device)
        return Trained(student, evaluate(data, student(x)), history)


def objective_for(method: str, recipe: Recipe) -> Objective:
    """The terms of a method, weighted as FF-G2M does: labels and teacher share a weight of one.

    Raises:
        ConfigError: An unknown method.
    """
    make = METHODS.get(method.lower())
    if make is None:
        raise ConfigError(
            f"objective_for: no method is called {method!r}; {nearest(method, METHODS)}"
        )
    terms = make(recipe)
    if not terms:
        return Objective(task=(1.0, F.cross_entropy))
    share = 1 - recipe.task_weight
    matched = {name: (share, criterion) for name, criterion in terms.items()}
    return Objective({"task": (recipe.task_weight, F.cross_entropy), **matched})


METHODS: dict[str, Callable[[Recipe], dict[str, nn.Module]]] = {
    "mlp": lambda recipe: {},
    "glnn": lambda recipe: {"soft": SoftLabel()},
    "lfd": lambda recipe: {"low": LowFrequency(_reduction(recipe))},
    "hfd": lambda recipe: {"high": HighFrequency(recipe.tau)},
    "ff-g2m": lambda recipe: {
        "low": LowFrequency(_reduction(recipe)),
        "high": HighFrequency(recipe.tau),
    },
    "krd": lambda recipe: {"soft": SoftLabel(), "krd": KRD(recipe.temperature)},
    "hgmd": lambda recipe: {"soft": SoftLabel(), "hgmd": HGMD(recipe.temperature)},
}
"""Terms besides ``task``, by method."""


@torch.no_grad()
def teacher_logits(model: nn.Module, data: Data) -> Tensor:
    """What a model says about all nodes of a graph, [N C], in eval mode.

    On a GPU or not, the result is on the CPU.
    """
    was = model.training
    model.eval()
    device = next(model.parameters()).device
    weight = data.get("edge_weight")
    inputs = [data.x, data.edge_index, *([] if weight is None else [weight])]
    z: Tensor = model(*(value.to(device) for value in inputs))
    model.train(was)
    return z.cpu()


def evaluate(data: Data, z: Tensor) -> dict[str, float]:
    """Accuracy of logits [N C] on the validation and test nodes, shares in [0, 1]."""
    z = z.to(data.y.device)
    parts = {"val": data.val_mask, "test": data.test_mask}
    return {k: accuracy(z[mask], data.y[mask]) for k, mask in parts.items() if bool(mask.any())}


def run_protocol(
    data: Data,
    recipe: Recipe,
    methods: tuple[str, ...] = ("mlp", "glnn", "ff-g2m"),
    *,
    seed: int = 0,
    hold_out_rate: float = 0.0,
    z_teacher: Tensor | None = None,
    engine: Engine | None = None,
    progress: Callable[[str], Progress] = lambda text: False,
) -> dict[str, Trained]:
    """One teacher and its students, all scored alike.

    Args:
        data: A checked graph.
        recipe: For all of them.
        methods: Of `METHODS`.
        seed: Draws everything that is drawn.
        hold_out_rate: Share of the test nodes that training never sees, with their edges; 0 is the
            transductive protocol. Scores are then also ``inductive`` (those nodes: students see
            their features only, the teacher their edges too) and ``production`` (both, weighted by
            the rate).
        z_teacher: Logits [N C] of a teacher that is not ours; then none is trained.
        engine: Device and precision.
        progress: Label to progress option of `fit`.

    Returns:
        By name; the teacher is ``"teacher"``.
    """
    held = hold_out(data, hold_out_rate, seed) if hold_out_rate else None
    observed = data if held is None else held.observed
    options: dict[str, Any] = {"seed": seed, "engine": engine}
    found: dict[str, Trained] = {}
    z = z_teacher
    if z is None:
        teacher = train_teacher(observed, recipe, progress=progress("teacher"), **options)
        found["teacher"], z = teacher, teacher_logits(teacher.model, observed)
    else:
        found["teacher"] = Trained(Given(z), evaluate(observed, z), [])
    for method in methods:
        found[method] = distill(observed, z, recipe, method, progress=progress(method), **options)
    if held is not None:
        for trained in found.values():
            _score_held_out(trained, data, held.held_out, hold_out_rate)
    return found


def _score_held_out(trained: Trained, data: Data, nodes: Tensor, rate: float) -> None:
    graph_free = isinstance(trained.model, MLPStudent)
    z = trained.model.logits(data.x) if graph_free else teacher_logits(trained.model, data)
    score = trained.accuracy
    score["inductive"] = accuracy(z.cpu()[nodes], data.y[nodes])
    score["production"] = rate * score["inductive"] + (1 - rate) * score["test"]


def _fit(
    distiller: Any,
    data: Data,
    recipe: Recipe,
    lr: float,
    seed: int,
    engine: Engine | None,
    progress: Progress,
    run: Path | str | None,
    score: Callable[[nn.Module], Any] | None = None,
) -> list[dict[str, float]]:
    if "num_classes" not in data:
        data = check_graph(data)
    if engine is None or engine.device.type == "cpu":
        check_memory(data, recipe)

    home = next(distiller.student.parameters()).device
    with ExitStack() as stack:
        engine = engine or stack.enter_context(Engine())
        data = engine.place(data.__copy__())  # `Data.to` moves in place
        seen, inputs = data.val_mask, [data.x]
        if isinstance(distiller, GraphToMLP):
            inputs, seen = [rows(data.x, seen.nonzero()[:, 0])], slice(None)  # nodes stand alone
        else:
            inputs += [data[name] for name in ("edge_index", "edge_weight") if name in data]
        labels = data.y[data.val_mask]

        def validate(model: nn.Module) -> dict[str, float]:
            # One pass an epoch: the test nodes are only looked at once, when training is over.
            return {"val": accuracy(model(*inputs)[seen], labels)}

        history = fit(
            distiller,
            [data],
            steps=recipe.epochs,
            lr=lr,
            optimizer=partial(torch.optim.Adam, weight_decay=recipe.weight_decay, fused=True),
            validation=Validation(
                score or validate, every=1, patience=recipe.patience, ties="latest"
            ),
            engine=engine,
            seed=seed,
            progress=progress,
            run=run,
        )
    distiller.student.to(home)
    return history


def _reduction(recipe: Recipe) -> Any:
    return recipe.reduction
