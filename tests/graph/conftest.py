"""Small graphs for the tests of the graph package."""

import warnings

import pytest
import torch

with warnings.catch_warnings():
    # PyG scripts parts of itself when it is imported, and torch warns that scripting is deprecated.
    warnings.simplefilter("ignore")
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected


@pytest.fixture
def graph():
    """30 nodes, 3 classes, 5 features, about 60 undirected edges, nodes 28 and 29 isolated."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(30) % 3
    edges = torch.randint(0, 28, (2, 70), generator=rng)
    edges = to_undirected(edges[:, edges[0] != edges[1]], num_nodes=30)
    order = torch.randperm(30, generator=rng)
    masks = torch.zeros(3, 30, dtype=torch.bool)
    masks[0, order[:12]] = masks[1, order[12:20]] = masks[2, order[20:]] = True
    return Data(
        x=torch.randn(30, 5, generator=rng) + y[:, None],
        edge_index=edges,
        y=y,
        train_mask=masks[0],
        val_mask=masks[1],
        test_mask=masks[2],
    )
