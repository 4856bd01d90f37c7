"""A graph network becomes an MLP that needs no graph: scikit-learn's digits, 5 labels a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from apps.tour.chapter import Chapter, Side, Tell, forward
from apps.tour.widgets import paragraph, plots
from potstill.core.measure.report import Draw
from potstill.graph import Recipe, load, train_teacher
from potstill.graph.analysis import Diagnosis, diagnose, single_node_call
from potstill.graph.training import NAMES

METHODS = ("mlp", "glnn", "ff-g2m")
SEED = 2022  # the first one of FF-G2M's protocol, as in the tables of the README
NODE = 7

TEXT = """The teacher mixes the features of neighbours, the student sees one row of features.
What is smooth over the graph (which class, roughly) passes over easily; the differences along
edges drown in it. FF-G2M asks for them with a term of its own. The first plot is how far a
student's differences along edges are from its teacher's while it learns, the second how similar
its predictions are along edges."""


def predict_node(model: nn.Module, data: Any, node: int) -> Tensor:
    """The graph network's work for one node: collect its neighbourhood, then run on it."""
    z: Tensor = single_node_call(model, data, node)()
    return z


def run(tell: Tell, out: Path, quick: bool) -> Chapter:
    """GCN to MLP by FF-G2M (Wu et al., AAAI 2023), beside GLNN and labels alone."""
    recipe = Recipe(epochs=30) if quick else Recipe()
    data = load("digits", seed=SEED)
    teacher = train_teacher(data, recipe, seed=SEED, progress=tell("GCN teacher", 0.15))
    ends = iter((0.3, 0.4, 0.7, 1.0))  # the same teacher again, for the curves, and its students
    found = diagnose(
        data, recipe, METHODS, seed=SEED, every=5, progress=lambda name: tell(name, next(ends))
    )
    for method, trained in found.students.items():
        trained.model.save_pretrained(out / method, teacher="GCN on the digits")
    student = found.students["ff-g2m"]
    return Chapter(
        title="Graphs: the student needs no edges",
        teacher=Side(
            "GCN",
            teacher.model,
            100 * teacher.accuracy["test"],
            predict_node,
            (teacher.model, data, NODE),
        ),
        student=Side(
            "MLP, FF-G2M",
            student.model,
            100 * student.accuracy["test"],
            forward,
            (student.model, data.x[NODE : NODE + 1]),
        ),
        measure="accuracy",
        unit="%",
        work="1 node",
        command="potstill graph diagnose --dataset cora",
        html=paragraph(TEXT)
        + plots(
            {
                "Divergence of differences along edges [nats], lower is closer": _curves(
                    found, "edge_kl"
                ),
                "Cosine similarity of predictions along edges": _curves(found, "cosine"),
            }
        ),
    )


def _curves(found: Diagnosis, key: str) -> Draw:
    def draw(axes: Any) -> None:
        for name, rows in found.curves.items():
            axes.plot([r["epoch"] for r in rows], [r[key] for r in rows], label=NAMES[name])
        if key == "edge_kl":
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter("{x:g}")
        else:
            axes.axhline(found.teacher[key], color="0.5", linestyle="--", label="teacher")
        axes.set_xlabel("epoch")
        axes.legend()

    return draw
