"""Positions against the formula written out, and what new nodes get."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Data

from potstill.core.errors import ConfigError, DataError
from potstill.graph.data import positions
from potstill.graph.data.positions import neighbour_positions, walk_positions, with_positions
from potstill.graph.data.tensors import as_features


def two_rings(size=8):
    ring = torch.arange(size)
    one = torch.stack([ring, (ring + 1) % size])
    pairs = torch.cat([one, one + size, torch.tensor([[0], [size]])], 1)
    return torch.cat([pairs, pairs.flip(0)], 1), 2 * size


def test_positions_factorize_the_matrix_of_walks():
    pairs = torch.randint(0, 16, (2, 40), generator=torch.Generator().manual_seed(0))
    pairs = torch.unique(torch.cat([pairs, pairs.flip(0)], 1), dim=1)
    pairs = pairs[:, pairs[0] != pairs[1]]
    a = np.zeros((16, 16))
    a[tuple(pairs.numpy())] = 1
    degree = a.sum(1)
    values, vectors = np.linalg.eigh(a / np.sqrt(np.outer(degree, degree)))
    # Negative eigenvalues, the alternation of odd and even walks, are left out, as published.
    powers = sum(np.clip(values, 0, 1) ** r for r in (1, 2, 3)) / 3
    half = vectors * np.sqrt(powers) / np.sqrt(degree)[:, None]
    m = np.log(np.maximum(1, degree.sum() * half @ half.T))
    value, vector = np.linalg.eigh(m)
    order = np.argsort(-np.abs(value))[:14]
    exact = vector[:, order] * np.sqrt(np.abs(value[order]))
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    found = walk_positions(pairs, 16, size=14, window=3, rank=15)
    expected = torch.tensor(exact @ exact.T).float()
    torch.testing.assert_close(found @ found.T, expected, rtol=0, atol=1e-3)


def test_positions_know_the_part_of_the_graph_and_repeat():
    edges, count = two_rings()
    found = walk_positions(edges, count + 1, size=4)
    similar = found @ found.T
    assert similar[4, 5] > similar[4, 12] + 0.2
    assert not found[-1].any()  # no edges
    assert torch.equal(found, walk_positions(edges, count + 1, size=4))


def test_new_nodes_lie_between_their_neighbours():
    known = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = neighbour_positions(known, torch.tensor([[0, 1, 1], [0, 0, 2]]), 3)
    torch.testing.assert_close(found[0], torch.full((2,), 0.5**0.5))
    assert not found[1].any()
    assert torch.equal(found[2], known[1])


def test_features_keep_their_layout_and_their_values():
    edges, count = two_rings()
    x = torch.rand(count, 5)
    dense = with_positions(Data(x=x, edge_index=edges), 3)
    packed = with_positions(Data(x=as_features(sp.csr_matrix(x.numpy())), edge_index=edges), 3)
    assert torch.equal(dense.x[:, :5], x)
    torch.testing.assert_close(packed.x.to_dense(), dense.x)
    lengths = [part.square().sum() for part in dense.x.split([5, 3], 1)]
    torch.testing.assert_close(*lengths)


def test_bad_sizes_are_named(monkeypatch):
    edges, count = two_rings()
    with pytest.raises(ConfigError, match="size must be from 1 to N - 2 = 14"):
        walk_positions(edges, count, size=15)
    monkeypatch.setattr(positions, "_MOST", 10)
    with pytest.raises(DataError, match="at most 10 nodes are possible, got 16"):
        walk_positions(edges, count, size=2)
