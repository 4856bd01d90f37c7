"""Splits: sizes, disjointness, determinism, and nothing of the held-out nodes in the graph."""

import pytest
import torch
from torch_geometric.data import Data

from potstill.core.errors import ConfigError, DataError
from potstill.graph.data.splits import cpf_split, hold_out, per_class_split


def labelled(count=400, classes=4):
    return Data(x=torch.eye(count), y=torch.arange(count) % classes, edge_index=torch.stack(
        [torch.arange(count - 1), torch.arange(1, count)]))  # fmt: skip


def masks(data):
    return torch.stack([data.train_mask, data.val_mask, data.test_mask])


def test_per_class_split_has_the_sizes_asked_for():
    data = per_class_split(labelled(), train=20, val=100, test=150, seed=3)
    assert masks(data).sum(1).tolist() == [80, 100, 150]
    assert masks(data).sum(0).max() == 1
    assert torch.bincount(data.y[data.train_mask]).tolist() == [20] * 4
    rest = per_class_split(labelled(), train=20, val=100, test=None)
    assert int(rest.test_mask.sum()) == 220


@pytest.mark.parametrize("split", [cpf_split, lambda d, seed=0: per_class_split(d, 5, 9, 9, seed)])
def test_a_split_is_a_function_of_its_seed(split):
    first, again, other = (masks(split(labelled(), seed=s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_cpf_split():
    data = cpf_split(labelled())
    assert masks(data).sum(1).tolist() == [80, 120, 200]
    with pytest.raises(DataError, match="more than 50 nodes, got 5 of class 0"):
        cpf_split(labelled(20))


def test_unlabelled_nodes_are_in_no_part():
    data = labelled()
    data.y[:40] = -1
    assert not masks(per_class_split(data, 5, 50, 100))[:, :40].any()


def test_held_out_nodes_leave_with_their_edges():
    data = per_class_split(labelled(), 5, 50, 100)
    held = hold_out(data, 0.2, seed=1)
    assert len(held.held_out) == 20
    assert data.test_mask[held.held_out].all()
    assert not torch.isin(held.nodes, held.held_out).any()
    ends = held.nodes[held.observed.edge_index]
    assert not torch.isin(ends, held.held_out).any()
    original = set(map(tuple, data.edge_index.T.tolist()))
    assert set(map(tuple, ends.T.tolist())) <= original
    torch.testing.assert_close(held.observed.x, data.x[held.nodes])
    assert torch.equal(held.observed.y, data.y[held.nodes])
    assert int(held.observed.test_mask.sum()) == 80


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5])
def test_rate_is_checked(rate):
    with pytest.raises(ConfigError, match=r"rate must be in \(0, 1\)"):
        hold_out(per_class_split(labelled(), 5, 50, 100), rate)
