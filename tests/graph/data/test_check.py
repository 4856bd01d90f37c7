"""Every row of the table of bad input: the message names the field, the fault and the fix."""

import logging
import math

import numpy as np
import pytest
import torch

from potstill.core.errors import ConfigError, DataError, PotstillError, ShapeError
from potstill.graph.data.check import check_edges, check_graph, check_logits, is_symmetric
from potstill.graph.data.sampling import partition
from potstill.graph.data.splits import hold_out, per_class_split, take_split
from potstill.graph.training.protocol import train_teacher
from potstill.graph.training.recipes import FULL_BATCH, Recipe


def changed(graph, **values):
    for name, value in values.items():
        graph[name] = value
    return graph


def with_value(tensor, place, value):
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


FAULTS = {
    "edges transposed": (
        lambda g: {"edge_index": g.edge_index.T},
        r"edge_index must be \[2, E\] int64, got \[\d+, 2\] torch.int64; pass edge_index.long\(\)",
    ),
    "edges of float": (lambda g: {"edge_index": g.edge_index.float()}, "torch.float32; pass"),
    "index too large": (
        lambda g: {"edge_index": with_value(g.edge_index, (0, 0), 30)},
        r"edge_index must be in \[0, 30\), got 0 to 30; the graph has 30 nodes",
    ),
    "index negative": (
        lambda g: {"edge_index": with_value(g.edge_index, (0, 0), -1)},
        r"got -1 to 27; .* relabel the nodes or add the missing rows",
    ),
    "NaN in x": (
        lambda g: {"x": with_value(g.x, (4, 2), math.nan)},
        "x must be finite, got NaN or infinity, first in row 4; drop these nodes or fill",
    ),
    "infinity in x": (lambda g: {"x": with_value(g.x, (7, 0), math.inf)}, "first in row 7"),
    "x of another length": (
        lambda g: {"x": g.x[:27]},
        r"edge_index must be in \[0, 27\)|y must be \[27\]|train_mask must be \[27\]",
    ),
    "x not a matrix": (lambda g: {"x": g.x[:, 0]}, r"x must be a matrix .* got shape \[30\]"),
    "y of another length": (
        lambda g: {"y": g.y[:29]},
        r"y must be \[30\] int64, one label for each row of x, got \[29\]",
    ),
    "float labels": (lambda g: {"y": g.y.float()}, "y must be .* got .* torch.float32"),
    "labels that are neither": (
        lambda g: {"y": torch.full((30, 4), 0.5), "task": "labels"},
        r"y must be 0 or 1 where a mask is set, got 0.5 at node \d+; take the node out",
    ),
    "another task": (lambda g: {"task": "class"}, "task must be classes, labels or values, got"),
    "no columns": (lambda g: {"task": "labels"}, r"y must be \[30, K\] for labels, got \[30\]"),
    "label negative": (
        lambda g: {"y": with_value(g.y, int(g.train_mask.nonzero()[0]), -1)},
        r"y must be in \[0, 3\) where a mask is set, got -1 at node \d+; -1 is for",
    ),
    "label too large": (
        lambda g: {"num_classes": 2},
        r"y must be in \[0, 2\) where a mask is set, got 2 at node",
    ),
    "masks overlap": (
        lambda g: {"val_mask": g.val_mask | g.train_mask},
        r"train_mask and val_mask must not overlap, got 12 nodes in both \(first: \d+\); give",
    ),
    "test overlaps": (lambda g: {"test_mask": ~g.train_mask}, "val_mask and test_mask"),
    "no training node": (
        lambda g: {"train_mask": torch.zeros(30, dtype=torch.bool)},
        "train_mask must select at least one node, got none; per_class_split makes a split",
    ),
    "no validation node": (
        lambda g: {"val_mask": torch.zeros(30, dtype=torch.bool)},
        "val_mask must select at least one node",
    ),
    "several splits": (
        lambda g: {"train_mask": g.train_mask[:, None].expand(30, 10)},
        r"train_mask must be \[30\], got \[30, 10\], which holds 10 splits; choose one: take_split",
    ),
    "mask of integers": (
        lambda g: {"test_mask": g.test_mask.long()},
        r"test_mask must be \[30\] bool, got \[30\] torch.int64; .*index_to_mask",
    ),
    "missing field": (lambda g: {"y": None}, "data.y must be there, got None"),
    "weights negative": (
        lambda g: {"edge_weight": with_value(torch.ones(g.num_edges), 5, -2.0)},
        "edge_weight must be finite and >= 0, got -2.0 at edge 5; clip or drop",
    ),
    "weights NaN": (
        lambda g: {"edge_weight": with_value(torch.ones(g.num_edges), 3, math.nan)},
        "edge_weight must be finite and >= 0, got nan at edge 3",
    ),
    "weights of another length": (
        lambda g: {"edge_weight": torch.ones(3)},
        r"edge_weight must be \[\d+\] float, one for each edge, got \[3\]",
    ),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_graph_is_refused(graph, change, message):
    with pytest.raises(PotstillError, match=message):
        check_graph(changed(graph, **change(graph)))


def test_a_right_graph_passes_and_is_not_changed(graph):
    before = graph.clone()
    checked = check_graph(graph)
    for name, value in before.items():
        assert torch.equal(graph[name], value), name
    assert checked.num_classes == 3
    assert torch.equal(checked.x, graph.x)


def test_isolated_nodes_are_counted_in_the_log(graph, caplog):
    with caplog.at_level(logging.INFO, "potstill.graph.data.check"):
        check_graph(graph)
    assert "of 30 nodes are isolated" in caplog.text


def test_no_edges_at_all_is_warned_about(graph):
    graph.edge_index = torch.empty(2, 0, dtype=torch.long)
    with pytest.warns(UserWarning, match="no edges, so there is nothing high-frequency to match"):
        check_graph(graph)
    with pytest.raises(DataError, match="no edges, .*; link the nodes, or pass strict=False"):
        check_graph(graph, strict=True)


def test_loops_and_duplicates_are_removed(graph):
    edges = torch.tensor([[0, 1, 1, 2, 0], [1, 0, 0, 2, 1]])
    with pytest.warns(UserWarning, match="2 duplicates in edge_index were merged"):
        clean, weight = check_edges(edges, 3, torch.tensor([1.0, 2.0, 3.0, 9.0, 1.0]))
    assert clean.tolist() == [[0, 1], [1, 0]]
    assert weight.tolist() == [2.0, 5.0]


def test_a_directed_graph_can_be_made_undirected():
    edges = torch.tensor([[0, 1], [1, 2]])
    assert not is_symmetric(edges, 3)
    both, _ = check_edges(edges, 3, to_undirected=True)
    assert is_symmetric(both, 3)
    one_way = torch.tensor([0.5, 1.0, 1.0, 1.0])
    assert not is_symmetric(both, 3, one_way)


def test_a_class_without_training_node_is_warned_about(graph):
    graph.train_mask &= graph.y != 1
    with pytest.warns(UserWarning, match=r"train_mask has no node of the classes \[1\]"):
        check_graph(graph)


def test_unlabelled_nodes_outside_the_masks_are_fine(graph):
    graph.test_mask[graph.test_mask.nonzero()[0]] = False
    outside = ~(graph.train_mask | graph.val_mask | graph.test_mask)
    graph.y[outside] = -1
    assert check_graph(graph).num_classes == 3


def test_one_split_of_several(graph):
    for name in ("train_mask", "val_mask", "test_mask"):
        graph[name] = torch.stack([graph[name], graph[name].flip(0)], 1)
    assert check_graph(take_split(graph, 1)).train_mask.ndim == 1
    with pytest.raises(ConfigError, match=r"index must be in \[0, 2\), got 2"):
        take_split(graph, 2)


def test_logits_of_another_shape(tmp_path):
    with pytest.raises(ShapeError, match=r"must be \[4, 3\] \(nodes, classes\), got \[4, 2\]"):
        check_logits(torch.zeros(4, 2), 4, 3)
    with pytest.raises(DataError, match="teacher logits must be finite, .* first in row 2"):
        check_logits(with_value(torch.zeros(4, 3), (2, 1), math.nan), 4)
    with pytest.raises(ConfigError, match="kind must be logits, probabilities or"):
        check_logits(torch.zeros(4, 3), 4, kind="soft")
    with pytest.raises(DataError, match="probabilities must be >= 0"):
        check_logits(-torch.ones(4, 3), 4, kind="probabilities")


def test_probabilities_are_recognised(tmp_path):
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    with pytest.warns(UserWarning, match="these look like probabilities; pass kind="):
        check_logits(p, 2)
    torch.testing.assert_close(check_logits(p, 2, kind="probabilities").softmax(1), p)
    torch.testing.assert_close(check_logits(p.log(), 2, kind="log_probabilities").softmax(1), p)


def test_logits_come_from_files_and_arrays(tmp_path):
    z = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    torch.testing.assert_close(check_logits(tmp_path / "z.npy", 5), torch.from_numpy(z))
    torch.testing.assert_close(check_logits(z, 5, 3), torch.from_numpy(z))


def test_a_class_with_too_few_nodes_cannot_be_split(graph):
    with pytest.raises(DataError, match="got 20 for class 0, which has 10; lower train"):
        per_class_split(graph)
    with pytest.raises(DataError, match=r"got 500 \+ 1000; lower them"):
        per_class_split(graph, train=2)


@pytest.mark.parametrize("name", ["weight", "edge_attr"])
def test_weights_by_other_names_are_taken_and_said(graph, name):
    edges = graph.edge_index.shape[1]
    weight = torch.rand(edges)
    graph[name] = weight[:, None]
    with pytest.warns(UserWarning, match=f"{name} is taken as edge_weight"):
        found = check_graph(graph)
    graph.edge_weight = weight
    torch.testing.assert_close(found.edge_weight, check_graph(graph).edge_weight)
    del graph.edge_weight
    graph[name] = torch.rand(edges, 3)
    with pytest.warns(UserWarning, match=f"{name} is not used, since weights are one number"):
        assert "edge_weight" not in check_graph(graph)


def test_labels_that_are_numbers_of_something_else(graph):
    graph.y = graph.y * 100_000
    with pytest.raises(DataError, match="got 3 different labels up to 200000; .*return_inverse"):
        check_graph(graph)


def test_classes_set_by_the_user_do_not_switch_checks_off(graph):
    graph.num_classes = 3
    graph.x[4, 2] = float("nan")
    with pytest.raises(DataError, match="x must be finite"):
        train_teacher(graph, Recipe(epochs=1, hidden=4), training=FULL_BATCH)


def test_parts_and_observed_graphs_keep_weights_and_mark(graph):
    graph.edge_weight = torch.rand(graph.edge_index.shape[1])
    data = check_graph(graph)
    (whole,) = partition(data, 1)
    torch.testing.assert_close(whole.edge_weight.sort().values, data.edge_weight.sort().values)
    assert hold_out(data, 0.3).observed.checked
