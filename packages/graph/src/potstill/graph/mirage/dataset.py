"""The distilled data set: one small graph for each set of trees that occur together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import WeightedRandomSampler
from torch_geometric.data import Data, InMemoryDataset

from potstill.core import ConfigError, DataError, atomic, reading
from potstill.graph.data.check import check_ends
from potstill.graph.mirage.colors import Labels, expand_tree, tree_sizes, wl_colors
from potstill.graph.mirage.mining import Pattern, mine

__all__ = ["DistilledDataset", "WeightedGraphSampler", "distill"]


class DistilledDataset(InMemoryDataset):  # type: ignore[misc]
    """Synthetic graphs: ``x``, ``edge_index``, ``y``, ``root_mask`` and ``weight``.

    Edges lead from child to parent. ``weight`` is the number of training graphs that a synthetic
    graph stands for. ``edge_attr`` is there where the original graphs have it. It is a PyG data
    set: index it, batch it, shuffle it.

    Args:
        graphs: At least one.

    Raises:
        DataError: No graphs.
    """

    def __init__(self, graphs: Sequence[Data]) -> None:
        if not graphs:
            raise DataError("DistilledDataset: graphs must not be empty; lower the support")
        super().__init__(None)
        self.data, self.slices = self.collate(list(graphs))

    @property
    def num_edges_in_all(self) -> int:
        """Edges of all graphs together: the size of the data set."""
        return sum(graph.num_edges for graph in self)

    def save(self, path: str | Path) -> Path:
        """Write one ``.npz`` with offsets; no pickle is involved."""
        path = Path(path)
        graphs = list(self)
        arrays = {
            "nodes": np.array([graph.num_nodes for graph in graphs]),
            "edges": np.array([graph.num_edges for graph in graphs]),
        }
        for key in graphs[0].keys():  # noqa: SIM118  (PyG's Data is no mapping)
            axis = -1 if key == "edge_index" else 0
            arrays[f"field.{key}"] = np.concatenate([g[key].numpy() for g in graphs], axis)
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return path

    @classmethod
    def load(cls, path: str | Path) -> DistilledDataset:
        """Read what `save` wrote.

        Raises:
            DataError: The file is missing, or holds something else.
        """
        with reading(path, "a distilled data set (.npz)"):
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: torch.from_numpy(file[key]) for key in file.files}
            nodes, edges = arrays.pop("nodes").tolist(), arrays.pop("edges").tolist()
            parts = {key.removeprefix("field."): value for key, value in arrays.items()}
            sizes = {k: _sizes(k, nodes, edges) for k in parts}
            split = {k: v.split(sizes[k], -1 if k == "edge_index" else 0) for k, v in parts.items()}
            graphs = [
                Data(**{k: v[i].clone() for k, v in split.items()}) for i in range(len(nodes))
            ]
            for graph in graphs:
                check_ends(graph.edge_index, len(graph.x), "DistilledDataset.load")
            return cls(graphs)


def _sizes(key: str, nodes: list[int], edges: list[int]) -> list[int]:
    if key in ("edge_index", "edge_attr"):
        return edges
    return nodes if key in ("x", "root_mask") else [1] * len(nodes)


class WeightedGraphSampler(WeightedRandomSampler):
    """Draws synthetic graphs by the number of graphs they stand for, every class equally often.

    Args:
        dataset: Set to draw from.
        num_samples: Draws in an epoch; as many as there are graphs by default.
        seed: The draws are a pure function of it.
    """

    def __init__(
        self, dataset: DistilledDataset, num_samples: int | None = None, seed: int = 0
    ) -> None:
        weight = torch.cat([graph.weight for graph in dataset]).double()
        y = torch.cat([graph.y for graph in dataset])
        for label in y.unique():
            weight[y == label] /= weight[y == label].sum()
        generator = torch.Generator().manual_seed(seed)
        super().__init__(weight.tolist(), num_samples or len(weight), generator=generator)


def distill(
    dataset: Sequence[Data],
    hops: int,
    *,
    support: int | float | None = None,
    graphs_per_class: int | None = None,
    budget_edges: int | None = None,
    labels: Labels = "given",
    max_size: int | None = None,
    max_patterns: int = 20_000,
    max_nodes: int = 20_000,
    progress: Callable[[str], None] = lambda text: None,
) -> DistilledDataset:
    """Distil labelled graphs into a few sets of computation trees.

    Source: Gupta et al. (Mirage), ICLR 2024, section 3. The result depends on depth and support
    only; the order of nodes and of graphs does not matter. Give one of ``support``,
    ``graphs_per_class`` and ``budget_edges``; the latter two lower the support until there are
    enough patterns, and take those of the largest area first: graphs times trees.

    Args:
        dataset: Graphs with ``edge_index``, ``y`` [1] and, unless ``labels`` says otherwise, ``x``.
        hops: Depth of the trees: layers of the networks that will train on the result.
        support: In how many graphs of its class a pattern must occur; below 1 a share of them.
        graphs_per_class: Largest number of synthetic graphs of each class.
        budget_edges: Edges of all synthetic graphs together, at most; classes get equal parts.
        labels: As of `wl_colors`.
        max_size: Largest number of trees in a pattern.
        max_patterns: As of `mine`.
        max_nodes: Largest tree that is expanded; only trees of the result are.
        progress: Is told in words how far it is.

    Raises:
        ConfigError: Not exactly one of the three ways to say how much.
        DataError: A class without any pattern, or a pattern explosion; graphs without a class;
            nodes or edges that have labels in some of the graphs only.
    """
    _check_labels(dataset)
    if sum(value is not None for value in (support, graphs_per_class, budget_edges)) != 1:
        raise ConfigError(
            "distill: give exactly one of support, graphs_per_class and budget_edges, got "
            f"{support}, {graphs_per_class} and {budget_edges}"
        )
    progress("colours")
    colors = wl_colors(dataset, hops, labels=labels)
    y = torch.cat([graph.y.reshape(-1) for graph in dataset])
    trees = _Trees(dataset, colors, hops, max_nodes)
    classes = y.unique().tolist()
    graphs: list[Data] = []
    for label in classes:
        progress(f"class {label}")
        own = (y == label).nonzero().flatten().tolist()
        sets = [trees.transaction(k) for k in own]
        options = {"max_size": max_size, "max_patterns": max_patterns}
        if support is not None:
            least = max(1, round(support * len(own))) if support < 1 else int(support)
            chosen = mine(sets, least, **options)  # type: ignore[arg-type]
        else:
            share = None if budget_edges is None else budget_edges // len(classes)
            chosen = _fill(sets, trees, graphs_per_class, share, options)
        if not chosen:
            raise DataError(
                f"distill: class {label} must have at least one pattern, got none among "
                f"{len(own)} graphs; lower support, or raise the budget"
            )
        graphs += [trees.graph(pattern, int(label)) for pattern in chosen]
    return DistilledDataset(graphs)


def _check_labels(dataset: Sequence[Data]) -> None:
    """A graph that lacks what the others have would lose it for all of them."""
    for key in ("y", "x", "edge_attr"):
        bare = key == "edge_attr"
        there = [g.get(key) is not None or (bare and not g.num_edges) for g in dataset]
        some = key == "y" or any(g.get(key) is not None for g in dataset)
        if some and not all(there):
            raise DataError(
                f"distill: every graph must have {key}, got none in graph {there.index(False)}; "
                f"add it there{'' if key == 'y' else ', or remove it from all graphs'}"
            )


def _fill(
    sets: list[set[int]],
    trees: _Trees,
    count: int | None,
    budget: int | None,
    options: dict[str, Any],
) -> list[Pattern]:
    """Lower the support until the patterns fill the budget; then take the best of them."""
    least, chosen = max(1, len(sets) // 2), list[Pattern]()
    while True:
        try:
            patterns = mine(sets, least, **options)
        except DataError:  # too many: what the last support gave has to do
            return chosen
        ranked = sorted(patterns, key=lambda p: (-p.support * len(p.items), p.items))
        chosen, used = [], 0
        for pattern in ranked:
            size = trees.size(pattern)
            if (count is None or len(chosen) < count) and (budget is None or used + size <= budget):
                chosen.append(pattern)
                used += size
        full = len(chosen) == count if budget is None else used > 0.9 * budget
        if full or least == 1:
            return chosen
        least = max(1, int(least * 0.7))


class _Trees:
    """The trees of a data set by colour; one node that shows each of them."""

    def __init__(
        self, dataset: Sequence[Data], colors: list[Tensor], hops: int, max_nodes: int
    ) -> None:
        self.dataset, self.hops, self.max_nodes = dataset, hops, max_nodes
        self.sets = [set(color.tolist()) for color in colors]
        self.shown: dict[int, tuple[int, int]] = {}
        for number, color in enumerate(colors):
            for node, value in enumerate(color.tolist()):
                self.shown.setdefault(value, (number, node))
        sizes = (tree_sizes(graph, hops) for graph in dataset)
        self.sizes = dict(
            pair for color, size in zip(colors, sizes, strict=True)
            for pair in zip(color.tolist(), size.tolist(), strict=True)
        )  # fmt: skip
        self.made: dict[int, Data] = {}

    def transaction(self, number: int) -> set[int]:
        """The trees of a graph that have more than one node."""
        return {color for color in self.sets[number] if self.sizes[color]}

    def tree(self, color: int) -> Data:
        if color not in self.made:
            number, node = self.shown[color]
            graph = self.dataset[number]
            tree = expand_tree(graph, node, self.hops, self.max_nodes)
            made = Data(edge_index=tree.edge_index, num_nodes=len(tree.nodes))
            if graph.x is not None:
                made.x = graph.x[tree.nodes]
            if graph.edge_attr is not None:
                made.edge_attr = graph.edge_attr[tree.edges]
            self.made[color] = made
        return self.made[color]

    def size(self, pattern: Pattern) -> int:
        """Edges of the synthetic graph."""
        return int(sum(self.sizes[color] for color in pattern.items))

    def graph(self, pattern: Pattern, label: int) -> Data:
        """The disjoint union of the trees of a pattern."""
        trees = [self.tree(color) for color in pattern.items]
        starts = np.cumsum([0, *(int(tree.num_nodes or 0) for tree in trees)]).tolist()
        edges = [t.edge_index + s for t, s in zip(trees, starts[:-1], strict=True)]
        roots = torch.zeros(starts[-1], dtype=torch.bool)
        roots[starts[:-1]] = True
        fields = {k: torch.cat([t[k] for t in trees]) for k in ("x", "edge_attr") if k in trees[0]}
        return Data(
            edge_index=torch.cat(edges, 1),
            y=torch.tensor([label]),
            root_mask=roots,
            weight=torch.tensor([float(pattern.support)]),
            num_nodes=None if "x" in fields else starts[-1],
            **fields,
        )
