"""Two distilled students of one graph."""

from __future__ import annotations

import torch

from apps.tour.chapter import Chapter, Side, forward
from apps.tour.graph import NODE, SEED
from apps.tour.widgets import table
from potstill.graph import MLPStudent, evaluate, load
from potstill.graph.analysis import measure
from potstill.graph.data import rows


def compare(first: str, second: str, data: str) -> Chapter:
    """``first`` and ``second``: folders of students; ``data``: a graph by name."""
    graph = load(data or "digits", seed=SEED)
    models = [MLPStudent.from_pretrained(source) for source in (first, second)]
    logits = [model.logits(graph.x) for model in models]
    scores = [evaluate(graph, z) for z in logits]
    node = rows(graph.x, torch.tensor([NODE]))
    sides = [
        Side(source, model, 100 * found["test"], forward, (model, node))
        for source, model, found in zip((first, second), models, scores, strict=True)
    ]
    figures = [measure(z, logits[0], graph.edge_index) for z in logits]
    cells = [
        ["accuracy on validation nodes [%]", *(100 * found["val"] for found in scores)],
        ["similarity of predictions along edges", *(f["cosine"] for f in figures)],
        ["Dirichlet ratio of predictions", *(f["dirichlet"] for f in figures)],
        ["same class as the first [%]", *(100 * f["agreement"] for f in figures)],
    ]
    return Chapter(
        title=f"Nodes of {data or 'digits'}, without its edges",
        teacher=sides[0],
        student=sides[1],
        measure="test accuracy",
        unit="%",
        work="1 node",
        command=f"potstill graph predict {first} features.npy",
        html=table(["", "first", "second"], cells),
        roles=("first", "second"),
    )
