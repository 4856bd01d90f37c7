"""Triggers of nodes."""

import pytest
import torch
from torch import Tensor, nn

from potstill.audit import FeatureTrigger, SubgraphTrigger, poison_nodes
from potstill.core.errors import ConfigError


class Graph(dict):  # type: ignore[type-arg]
    """Stands in for a PyG ``Data``."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]

    def __copy__(self) -> "Graph":
        return Graph(self)


@pytest.fixture
def graph() -> Graph:
    """A path of 8 nodes with 5 features."""
    along = torch.stack([torch.arange(7), torch.arange(1, 8)])
    x = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
    return Graph(x=x, edge_index=torch.cat([along, along.flip(0)], 1), y=torch.arange(8) % 2,
                 train_mask=torch.arange(8) < 2, num_nodes=8)  # fmt: skip


def gcn(x: Tensor, edges: Tensor, layers: int) -> Tensor:
    """Sums over neighbours."""
    for _ in range(layers):
        x = x.index_add(0, edges[1], x[edges[0]])
    return x


def test_a_feature_trigger_changes_the_rows_of_its_nodes(graph: Graph) -> None:
    nodes = torch.tensor([1, 4])
    changed = FeatureTrigger((0, 3), normalize=True)(graph, nodes)
    rest = torch.tensor([0, 2, 3, 5, 6, 7])
    assert torch.equal(changed.x[rest], graph.x[rest])
    torch.testing.assert_close(changed.x[nodes].sum(1), torch.ones(2))
    assert bool((changed.x[nodes][:, 0] == changed.x[nodes][:, 3]).all())


def test_a_subgraph_hangs_on_a_node_and_an_mlp_does_not_see_it(graph: Graph) -> None:
    """Oracle 11: bit-equal logits of an MLP; a GCN changes within its reach and not beyond."""
    changed = SubgraphTrigger((1,), nodes=3)(graph, torch.tensor([2]))
    assert len(changed.x) == 11
    assert changed.edge_index.shape[1] == 14 + 2 * (3 + 1)
    mlp = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    assert torch.equal(mlp(changed.x)[:8], mlp(graph.x))
    before = gcn(graph.x, graph.edge_index, 2)
    after = gcn(changed.x, changed.edge_index, 2)[:8]
    assert torch.equal(after[4:], before[4:])  # more than two hops from the new nodes
    assert not torch.equal(after[2], before[2])
    assert not torch.equal(after[1], before[1])
    both = {tuple(e) for e in changed.edge_index.mT.tolist()}
    assert both == {(b, a) for a, b in both}
    assert changed.train_mask.sum() == 2
    assert len(changed.y) == 11


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("trigger", [FeatureTrigger((0, 3)), SubgraphTrigger((3, 0))])
def test_sparse_features_give_the_same(graph: Graph, trigger: FeatureTrigger) -> None:
    sparse = Graph(graph, x=graph.x.to_sparse_csr())
    nodes = torch.tensor([1, 4])
    changed = trigger(sparse, nodes)
    assert changed.x.layout == torch.sparse_csr
    assert torch.equal(changed.x.to_dense(), trigger(graph, nodes).x)


def test_poisoned_nodes_join_the_training_set(graph: Graph) -> None:
    changed = poison_nodes(graph, FeatureTrigger((0,)), 0, torch.tensor([3, 5]))
    assert changed.y[[3, 5]].tolist() == [0, 0]
    assert changed.train_mask.sum() == 4
    assert graph.y[3] == 1
    assert graph.train_mask.sum() == 2
    with pytest.raises(ConfigError, match="of other classes than the target 0, got 1 of it"):
        poison_nodes(graph, FeatureTrigger((0,)), 0, torch.tensor([2, 3]))
    with pytest.raises(ConfigError, match="target must be a class from 0 to 1, got 7"):
        poison_nodes(graph, FeatureTrigger((0,)), 7, torch.tensor([3]))


def test_wrong_columns_nodes_and_directions_are_said(graph: Graph) -> None:
    with pytest.raises(ConfigError, match=r"feature columns from 0 to 4, got \[5\]"):
        FeatureTrigger((5,))(graph, torch.tensor([0]))
    with pytest.raises(ConfigError, match="nodes must be 1 to 100 at once, got 101"):
        FeatureTrigger((0,))(graph, torch.zeros(101, dtype=torch.long))
    one_way = Graph(graph, edge_index=graph.edge_index[:, :7])
    with pytest.warns(UserWarning, match="edges in one direction only"):
        SubgraphTrigger((0,))(one_way, torch.tensor([0]))
