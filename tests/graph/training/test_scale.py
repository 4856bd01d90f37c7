"""Batches: unbiased, the same on two processes, and from memory maps; blocks and parts exact."""

import numpy as np
import pytest
import torch

from potstill.core import Engine
from potstill.core.engine.ranks import run_ranks
from potstill.core.errors import ConfigError, DataError, ShapeError
from potstill.graph.criteria.frequency import HighFrequency, LowFrequency, match_rows
from potstill.graph.data.check import check_graph
from potstill.graph.data.datasets import load, sparse_features
from potstill.graph.models.teachers import GATTeacher, GCNTeacher, SAGETeacher
from potstill.graph.training.recipes import Recipe
from potstill.graph.training.scale import (
    GraphStore,
    check_memory,
    distill_in_batches,
    logits_in_blocks,
)

SIZES = {"nodes": 8, "edges": 8, "labelled": 4}


def store_of(graph, x=None, seed=0):
    data = check_graph(graph)
    z = torch.randn(30, 3, generator=torch.Generator().manual_seed(seed)) * 2
    x = data.x if x is None else x
    return GraphStore.make(x, data.edge_index, z, data.y, data.train_mask, edge_chunk=7)


def test_targets_of_all_nodes_are_the_low_frequency_term(graph):
    store = store_of(graph)
    z = torch.randn(30, 3)
    expected = LowFrequency()(z, store.z_teacher, check_graph(graph).edge_index)
    torch.testing.assert_close(match_rows(z, store.target, store.entropy), expected)


def test_batches_are_unbiased(graph):
    store, z = store_of(graph), torch.randn(30, 3, generator=torch.Generator().manual_seed(5))
    edges = check_graph(graph).edge_index
    low, high = [], []
    for step in range(400):
        i = torch.randint(30, (8,), generator=torch.Generator().manual_seed(step))
        low.append(match_rows(z[i], store.target[i] * 30 / 8, store.entropy[i] * 30 / 8))
        k = torch.randint(store.half.shape[1], (8,), generator=torch.Generator().manual_seed(step))
        high.append(HighFrequency(symmetric=False)(z, store.z_teacher, store.half[:, k]))
    for values, full in (
        (low, LowFrequency()(z, store.z_teacher, edges)),
        (high, HighFrequency()(z, store.z_teacher, edges)),
    ):
        mean, error = torch.stack(values).mean(), torch.stack(values).std() / 20
        assert abs(mean - full) < 4 * error


def test_a_batch_holds_rows_of_the_graph(graph):
    store = store_of(graph)
    batch = store.draw(3, 0, 1, seed=0, **SIZES)
    assert batch.x_nodes.shape == (8, 5)
    assert batch.edges.shape == (2, 8)
    ends = batch.x_ends[batch.edges]
    pairs = {tuple(map(tuple, p.tolist())) for p in graph.x[store.half].transpose(0, 1)}
    assert all(tuple(map(tuple, p.tolist())) in pairs for p in ends.transpose(0, 1))


def test_processes_share_the_global_batch(graph):
    store = store_of(graph)
    whole = store.draw(5, 0, 1, nodes=8, edges=8, labelled=4, seed=1)
    parts = [store.draw(5, r, 2, nodes=4, edges=4, labelled=2, seed=1) for r in range(2)]
    both = torch.stack([p.x_nodes for p in parts], 1).reshape(8, 5)
    torch.testing.assert_close(both, whole.x_nodes)


def curve(graph, sizes):
    torch.set_num_threads(1)
    with Engine(device="cpu") as engine:
        recipe = Recipe(hidden=8, student_dropout=0.0)
        student, history = distill_in_batches(
            store_of(graph), recipe, steps=5, engine=engine, progress=False, **sizes
        )
        rows = [[row[k] for k in ("loss", "task", "low", "high")] for row in history]
        return torch.tensor(rows, dtype=torch.float64), [p.detach() for p in student.parameters()]


@pytest.mark.dist
def test_two_processes_give_the_curve_of_one(graph):
    rows, weights = curve(graph, {"nodes": 16, "edges": 16, "labelled": 8})
    halves = {"nodes": 8, "edges": 8, "labelled": 4}
    for other_rows, other_weights in run_ranks(curve, 2, graph, halves):
        torch.testing.assert_close(other_rows, rows, rtol=1e-6, atol=1e-6)
        for found, expected in zip(other_weights, weights, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["memory map", "csr"])
def test_features_on_disk_or_sparse_train_alike(graph, tmp_path, kind):
    np.save(tmp_path / "x.npy", graph.x.numpy())
    recipe = Recipe(hidden=8)
    x = np.load(tmp_path / "x.npy", mmap_mode="r") if kind == "memory map" else None
    if kind == "csr":
        x = sparse_features(check_graph(graph), sparse=True).x
    found = [
        distill_in_batches(store_of(graph, x=x), recipe, steps=4, progress=False, **SIZES)[1]
        for x in (None, x)
    ]
    for a, b in zip(*found, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_batches_learn_the_digits():
    data = load("digits", seed=0)
    z = 5 * torch.nn.functional.one_hot(data.y, 10).float()
    store = GraphStore.make(data.x, data.edge_index, z, data.y, data.train_mask)
    student, history = distill_in_batches(
        store, Recipe(), epochs=20, nodes=256, edges=256, labelled=50, progress=False
    )
    assert history[-1]["low"] < 0.5 * history[0]["low"]
    right = (student.predict(data.x) == data.y)[data.test_mask].float().mean()
    assert right > 0.85


@pytest.mark.parametrize("kind", [GCNTeacher, SAGETeacher])
@pytest.mark.parametrize("block", [7, 100])
def test_logits_in_blocks_are_the_logits(graph, tmp_path, kind, block):
    teacher = kind(5, 8, 3, 3).eval()
    expected = teacher(graph.x, graph.edge_index)
    np.save(tmp_path / "x.npy", graph.x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for x in (graph.x, mapped):
        found = logits_in_blocks(teacher, x, graph.edge_index, block=block)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weight = torch.rand(graph.edge_index.shape[1])
    found = logits_in_blocks(teacher, graph.x, graph.edge_index, weight, block=block)
    torch.testing.assert_close(found, teacher(graph.x, graph.edge_index, weight))
    with pytest.raises(ConfigError, match="must be a GCNTeacher or SAGETeacher, got GATTeacher"):
        logits_in_blocks(GATTeacher(5, 8, 2, 3), graph.x, graph.edge_index)


def test_what_does_not_fit_is_refused_before_it_starts(graph):
    data = check_graph(graph)
    needed = check_memory(data, Recipe())
    with pytest.raises(DataError, match="got an estimate of .* use distill_in_batches, store x as"):
        check_memory(data, Recipe(), available=needed - 1)


def test_options_are_checked(graph):
    with pytest.raises(ConfigError, match="nodes, edges, labelled and epochs must be positive"):
        distill_in_batches(store_of(graph), Recipe(), nodes=0)
    with pytest.raises(ConfigError, match="reduction of the store, 'edge', got 'node'"):
        distill_in_batches(store_of(graph), Recipe(reduction="node"))
    whole = (graph.x, graph.edge_index, torch.zeros(30, 3), graph.y, graph.train_mask)
    with pytest.raises(ShapeError, match="edge_weight must be"):
        GraphStore.make(*whole, edge_weight=torch.ones(3))
    with pytest.raises(ConfigError, match="reduction must be edge or node"):
        GraphStore.make(*whole, reduction="mean")
    with pytest.raises(DataError, match="edge_index must be in"):
        GraphStore.make(whole[0], torch.tensor([[0], [30]]), *whole[2:])


@pytest.mark.parametrize("reduction", ["edge", "node"])
@pytest.mark.parametrize("kind", ["both ways", "one way", "weights"])
def test_stores_of_any_graph_have_the_targets_of_the_whole(graph, kind, reduction):
    data, rng = check_graph(graph), torch.Generator().manual_seed(1)
    edges, z = data.edge_index, torch.randn(30, 3, generator=rng)
    edges = edges[:, edges[0] > edges[1]] if kind == "one way" else edges
    weight = torch.rand(edges.shape[1], generator=rng) if kind == "weights" else None
    store = GraphStore.make(
        data.x, edges, z, data.y, data.train_mask, edge_weight=weight, reduction=reduction
    )
    z_s = torch.randn(30, 3, generator=rng)
    expected = LowFrequency(reduction)(z_s, z, edges, weight)
    torch.testing.assert_close(match_rows(z_s, store.target, store.entropy), expected)
    assert store.half.shape[1] == edges.shape[1] // (2 if kind == "both ways" else 1)
    draws = [store.draw(step, 0, 1, seed=0, **SIZES) for step in range(400)]
    z_x = {tuple(row.tolist()): z_s[i] for i, row in enumerate(data.x)}
    values = torch.stack([
        HighFrequency(symmetric=False)(
            torch.stack([z_x[tuple(row.tolist())] for row in batch.x_ends]),
            batch.z_ends, batch.edges,
        )
        for batch in draws
    ])  # fmt: skip
    full = HighFrequency()(z_s, z, edges, weight)
    assert abs(values.mean() - full) < 4 * values.std() / 20


@pytest.mark.parametrize("method", ["mlp", "glnn", "ff-g2m"])
def test_batches_keep_the_best_validated_student_of_each_method(graph, method):
    data, z = check_graph(graph), 3 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(hidden=16, lr=0.02, student_dropout=0.0, task_weight=0.0, epochs=1)
    masks = (data.y, data.train_mask)
    store = GraphStore.make(data.x, data.edge_index, z, *masks, val_mask=data.val_mask)
    student, history = distill_in_batches(
        store, recipe, method, epochs=60, seed=1, progress=False, **SIZES
    )
    scores = [row["val"] for row in history if "val" in row]
    assert len(scores) >= 30
    right = student.eval().predict(data.x) == data.y
    assert float(right[data.val_mask].float().mean()) == pytest.approx(max(scores))
    if method == "glnn":  # its targets are the teacher's own
        batch = store.draw(0, 0, 1, seed=0, soft=True, **{**SIZES, "edges": 0})
        row = {tuple(x.tolist()): z[i].softmax(0) for i, x in enumerate(data.x)}
        expected = torch.stack([row[tuple(x.tolist())] for x in batch.x_nodes])
        torch.testing.assert_close(batch.target * len(batch.target), expected)
        assert len(batch.x_ends) == 0
    with pytest.raises(ConfigError, match="method must be ff-g2m, glnn or mlp, got 'krd'"):
        distill_in_batches(store, recipe, "krd")
