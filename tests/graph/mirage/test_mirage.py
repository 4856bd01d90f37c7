"""Mirage: colours against expanded trees, patterns against brute force, and the whole way."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_undirected

from potstill.core.errors import ConfigError, DataError
from potstill.core.testing import requires_data
from potstill.graph.mirage import (
    DistilledDataset,
    RootReadout,
    WeightedGraphSampler,
    auc,
    distill,
    expand_tree,
    load_tu,
    mine,
    random_sample,
    split_graphs,
    train_classifier,
    wl_colors,
)
from potstill.graph.mirage.colors import tree_sizes


def random_graph(rng, edge_labels=True):
    count = int(rng.integers(2, 7))
    pairs = [p for p in combinations(range(count), 2) if rng.random() < 0.5]
    edges = to_undirected(torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T, num_nodes=count)
    kind = {(min(a, b), max(a, b)): int(rng.integers(2)) for a, b in edges.T.tolist()}
    attr = torch.tensor([kind[min(a, b), max(a, b)] for a, b in edges.T.tolist()])
    x = torch.nn.functional.one_hot(torch.from_numpy(rng.integers(0, 2, count)), 2).float()
    return Data(
        x=x,
        edge_index=edges,
        edge_attr=torch.nn.functional.one_hot(attr, 2).float() if edge_labels and len(attr) else (
            torch.zeros(len(attr), 2) if edge_labels else None),
        y=torch.tensor([int(rng.integers(2))]),
    )  # fmt: skip


def tree_of(graph, node, hops):
    """The computation tree, written out as nested tuples: the definition."""
    label = tuple(graph.x[node].tolist())
    if not hops:
        return label, ()
    below = []
    for k, (source, target) in enumerate(graph.edge_index.T.tolist()):
        if target == node:
            edge = () if graph.edge_attr is None else tuple(graph.edge_attr[k].tolist())
            below.append((edge, tree_of(graph, source, hops - 1)))
    return label, tuple(sorted(below))


@pytest.mark.parametrize("edge_labels", [True, False])
def test_colours_are_computation_trees_on_500_random_graphs(edge_labels):
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng, edge_labels) for _ in range(250)]
    for hops in (0, 1, 2, 3):
        colors = torch.cat(wl_colors(graphs, hops)).tolist()
        trees = [tree_of(g, node, hops) for g in graphs for node in range(g.num_nodes)]
        pairs = set(zip(colors, trees, strict=True))
        assert len(pairs) == len(set(colors)) == len(set(trees))


def canonical(tree, graph, node=0):
    children = (tree.edge_index[1] == node).nonzero().flatten().tolist()
    below = tuple(sorted(
        (tuple(graph.edge_attr[tree.edges[k]].tolist()),
         canonical(tree, graph, int(tree.edge_index[0, k]))) for k in children
    ))  # fmt: skip
    return tuple(graph.x[tree.nodes[node]].tolist()), below


def test_expanded_trees_are_the_definition():
    rng = np.random.default_rng(1)
    for _ in range(40):
        graph = random_graph(rng)
        for hops in (0, 1, 2, 3):
            tree = expand_tree(graph, 0, hops)
            assert tree.edge_index.shape == (2, len(tree.nodes) - 1)
            assert canonical(tree, graph) == tree_of(graph, 0, hops)


def test_trees_are_counted_without_being_expanded(monkeypatch):
    graphs = graphs_of(3)
    for graph in graphs:
        for hops in (0, 1, 3):
            sizes = [len(expand_tree(graph, i, hops).nodes) - 1 for i in range(graph.num_nodes)]
            assert tree_sizes(graph, hops).tolist() == sizes
    # A hub whose tree is too large stands in one graph, and in no pattern.
    star = to_undirected(torch.stack([torch.zeros(60).long(), torch.arange(1, 61)]))
    wide = Data(x=torch.eye(2).repeat(31, 1)[:61], edge_index=star, y=torch.tensor([0]),
                edge_attr=torch.zeros(120, 2))  # fmt: skip
    expanded = []
    monkeypatch.setattr("potstill.graph.mirage.dataset.expand_tree",
                        lambda g, n, *o: expanded.append(n) or expand_tree(g, n, *o))  # fmt: skip
    found = distill([*graphs, wide], 2, support=2, max_nodes=40)
    colors = len(torch.cat(wl_colors(graphs, 2)).unique())
    assert len(expanded) <= sum(int(g.root_mask.sum()) for g in found) < colors


@pytest.mark.parametrize("key", ["x", "edge_attr", "y"])
def test_one_graph_without_labels_does_not_cost_the_others_theirs(key):
    graphs = [g for g in graphs_of(11) if g.num_edges]
    count = graphs[3].num_nodes
    graphs[3][key] = None
    graphs[3].num_nodes = count
    with pytest.raises(DataError, match=f"every graph must have {key}, got none in graph 3"):
        distill(graphs, 1, support=2)
    if key == "edge_attr":
        with pytest.raises(DataError, match=f"got 1 of {len(graphs)} graphs without"):
            wl_colors(graphs, 1)
        assert wl_colors(graphs, 1, use_edge_labels=False)


def test_huge_trees_are_refused():
    full = torch.ones(30, 30).fill_diagonal_(0).nonzero().T
    with pytest.raises(DataError, match="must have at most 1000 nodes, got .* lower hops"):
        expand_tree(Data(edge_index=full, num_nodes=30), 0, 4, max_nodes=1000)


def test_patterns_are_the_closed_sets_of_brute_force():
    rng = np.random.default_rng(2)
    for _ in range(40):
        sets = [set(rng.integers(0, 6, rng.integers(1, 6)).tolist()) for _ in range(8)]
        items = set(chain(*sets))
        for support in (1, 2, 4):
            counts = {
                frozenset(c): sum(set(c) <= s for s in sets)
                for n in range(1, len(items) + 1)
                for c in combinations(sorted(items), n)
            }
            closed = {
                (tuple(sorted(c)), n)
                for c, n in counts.items()
                if n >= support and not any(c < d and n == m for d, m in counts.items())
            }
            assert {(p.items, p.support) for p in mine(sets, support)} == closed


def test_an_explosion_of_patterns_is_capped():
    sets = [set(range(12)) - {k} for k in range(12)]
    with pytest.raises(DataError, match="at most 100 patterns are wanted, .* raise support"):
        mine(sets, 1, max_patterns=100)
    assert max(len(p.items) for p in mine(sets, 1, max_size=12)) == 11
    with pytest.raises(ConfigError, match="support and max_size must be at least 1"):
        mine(sets, 0)


def graphs_of(seed, count=40):
    rng = np.random.default_rng(seed)
    return [random_graph(rng) for _ in range(count)]


def contents(dataset):
    rows = []
    for g in dataset:
        roots = g.root_mask.nonzero().flatten().tolist()
        trees = sorted(tree_of(g, r, 2) for r in roots)
        rows.append((int(g.y), float(g.weight), tuple(trees)))
    return sorted(rows)


def test_numbering_of_nodes_does_not_matter():
    graphs = graphs_of(3)
    permuted = []
    for k, g in enumerate(graphs):
        order = torch.randperm(g.num_nodes, generator=torch.Generator().manual_seed(k))
        place = torch.argsort(order)
        permuted.append(
            Data(x=g.x[order], edge_index=place[g.edge_index], edge_attr=g.edge_attr, y=g.y)
        )
    first, again = (distill(g, 2, support=2) for g in (graphs, permuted))
    assert contents(first) == contents(again)


def test_synthetic_graphs_hold_trees_with_marked_roots():
    graphs = graphs_of(4)
    found = distill(graphs, 2, graphs_per_class=3)
    assert {int(g.y) for g in found} == {0, 1}
    assert len(found) <= 6
    for g in found:
        children = torch.bincount(g.edge_index[0], minlength=g.num_nodes)
        assert torch.equal(children == 0, g.root_mask)  # every node but the roots has one parent
        assert children.max() == 1


def test_supports_are_counts_of_graphs():
    graphs = graphs_of(5)
    found = distill(graphs, 1, support=0.2)
    colors = wl_colors(graphs, 1)
    own = [set(c.tolist()) for c, g in zip(colors, graphs, strict=True) if int(g.y) == 0]
    weights = [float(g.weight) for g in found if int(g.y) == 0]
    assert max(weights) <= len(own)
    assert min(weights) >= 0.2 * len(own) - 1


def test_the_budget_is_kept():
    graphs = graphs_of(6)
    assert distill(graphs, 1, budget_edges=60).num_edges_in_all <= 60


def test_storage_needs_no_pickle(tmp_path):
    found = distill(graphs_of(7), 2, support=2)
    again = DistilledDataset.load(found.save(tmp_path / "set.npz"))
    assert contents(again) == contents(found)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="must be a distilled data set"):
        DistilledDataset.load(tmp_path / "bad.npz")


def test_sampling_is_by_weight_within_a_class():
    graphs = [
        Data(x=torch.ones(1, 1), edge_index=torch.zeros(2, 0, dtype=torch.long),
             y=torch.tensor([y]), root_mask=torch.tensor([True]), weight=torch.tensor([w]))
        for y, w in ((0, 3.0), (0, 1.0), (1, 100.0))
    ]  # fmt: skip
    drawn = torch.tensor(list(WeightedGraphSampler(DistilledDataset(graphs), 4000, seed=0)))
    shares = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.375, 0.125, 0.5]), atol=0.03, rtol=0)


def test_readout_of_roots():
    h, batch = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 0, 1])
    roots = torch.tensor([False, True, True])
    assert RootReadout("sum")(h, batch, 2, None).flatten().tolist() == [3, 4]
    assert RootReadout("sum")(h, batch, 2, roots).flatten().tolist() == [2, 4]
    with pytest.raises(ConfigError, match="aggr must be sum or mean, got 'max'"):
        RootReadout("max")


@pytest.mark.parametrize("labels", ["constant", "degree"])
def test_graphs_without_labels_need_a_choice(labels):
    graphs = graphs_of(8)
    for g in graphs:
        g.num_nodes = len(g.x)
        del g.x
    with pytest.raises(DataError, match="must have node labels x, got None; pass labels='degree'"):
        distill(graphs, 1, support=2)
    assert len(distill(graphs, 1, support=2, labels=labels))


def test_what_to_give_and_what_is_missing():
    graphs = graphs_of(9)
    with pytest.raises(ConfigError, match="exactly one of support, graphs_per_class"):
        distill(graphs, 1)
    with pytest.raises(DataError, match="class 0 must have at least one pattern, .* lower support"):
        distill(graphs, 1, support=1000)


@requires_data("graph/tu/MUTAG/raw")
def test_mutag_from_end_to_end():
    graphs = load_tu("MUTAG")
    assert len(graphs) == 188
    split = split_graphs(graphs, seed=0)
    assert [len(part) for part in split] == [150, 19, 19]
    found = distill(split.train, 2, budget_edges=sum(g.num_edges for g in split.train) // 20)
    control = random_sample(split.train, found.num_edges_in_all)
    assert sum(g.num_edges for g in control) <= found.num_edges_in_all
    model = train_classifier(found, split.val, steps=40, hidden=16)
    assert auc(model, split.val) > 0.5
    assert model(Batch.from_data_list(list(found)[:3])).shape == (3, 2)


@pytest.mark.parametrize("classes", [2, 4])
def test_auc_is_that_of_scikit_learn(classes: int) -> None:
    logits = torch.randn(60, classes, generator=torch.Generator().manual_seed(classes)).round()
    labels = torch.arange(60) % classes
    p = logits.softmax(1).numpy()
    expected = roc_auc_score(labels, p[:, 1] if classes == 2 else p, multi_class="ovr")
    assert auc(logits, labels) == pytest.approx(expected, abs=1e-6)
    assert auc(logits, torch.zeros(60, dtype=torch.long)) == 0.5


@requires_data("graph/tu/NCI1/raw")
def test_trees_of_nci1():
    graphs = load_tu("NCI1")
    distinct = [len(torch.cat(wl_colors(graphs, hops)).unique()) for hops in (1, 2)]
    assert distinct == [292, 4058]  # measured for the design note with other code
