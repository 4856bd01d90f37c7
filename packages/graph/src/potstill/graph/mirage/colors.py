"""Computation trees as colours: equal trees, equal numbers, and no tree is ever built.

Two nodes have equal computation trees of depth L exactly when L rounds of colour refinement (1-WL,
edge labels included) give them equal colours, so the trees of a data set are counted in
O(L E log E). Only trees that are wanted in the end are expanded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from potstill.core import ConfigError, DataError

__all__ = ["Tree", "expand_tree", "tree_sizes", "wl_colors"]

Labels = Literal["given", "constant", "degree"]
Integers = NDArray[np.int64]


def wl_colors(
    dataset: Sequence[Data],
    hops: int,
    use_edge_labels: bool = True,
    labels: Labels = "given",
) -> list[Tensor]:
    """The computation tree of depth ``hops`` of every node, as a number.

    Source: Weisfeiler and Leman, 1968; Shervashidze et al., JMLR 2011, section 3. Exact: colours
    are looked up by their whole signature, never by a hash alone.

    Args:
        dataset: Graphs with ``edge_index`` [2 E] and, for ``"given"``, node features ``x`` [N F],
            whose distinct rows are the labels; ``edge_attr`` [E K] likewise.
        hops: Depth L >= 0.
        use_edge_labels: Make edge labels part of the trees.
        labels: ``"given"``; or, for graphs without node labels, ``"constant"`` or ``"degree"``.

    Returns:
        One [N] int64 for each graph; equal numbers mean equal trees, across graphs too.

    Raises:
        ConfigError: ``hops`` below 0, or unknown ``labels``.
        DataError: No graphs; graphs without ``x`` where labels are ``"given"``; edges without
            labels in some of the graphs.

    Example:
        >>> path = Data(x=torch.ones(3, 1), edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
        >>> wl_colors([path], hops=1)
        [tensor([0, 1, 0])]
    """
    if hops < 0:
        raise ConfigError(f"wl_colors: hops must be at least 0, got {hops}")
    sizes = np.array([int(graph.num_nodes or 0) for graph in dataset], dtype=np.int64)
    if not sizes.sum():
        raise DataError("wl_colors: dataset must hold at least one node, got none")
    offsets = np.concatenate([[0], sizes.cumsum()])
    edges = np.concatenate(
        [g.edge_index.numpy() + start for g, start in zip(dataset, offsets[:-1], strict=True)], 1
    )
    source, target = edges
    color = _node_labels(dataset, labels, target, int(offsets[-1]))
    kind = _edge_labels(dataset, len(source)) if use_edge_labels else np.zeros_like(source)
    bounds = np.searchsorted(np.sort(target), np.arange(offsets[-1] + 1))
    for _ in range(hops):
        color = _refine(color, source, target, kind, bounds)
    return [torch.from_numpy(part) for part in np.split(color, offsets[1:-1])]


def _refine(
    color: Integers, source: Integers, target: Integers, kind: Integers, bounds: Integers
) -> Integers:
    """One round: a node's new colour is its own and the multiset of (edge label, colour) around."""
    seen = kind * (color.max() + 1) + color[source]
    seen = seen[np.lexsort((seen, target))].tobytes()
    known: dict[tuple[int, bytes], int] = {}
    ends = (bounds * 8).tolist()
    own = color.tolist()
    found = [
        known.setdefault((own[i], seen[ends[i] : ends[i + 1]]), len(known)) for i in range(len(own))
    ]
    return np.array(found, dtype=np.int64)


def _node_labels(dataset: Sequence[Data], labels: Labels, target: Integers, count: int) -> Integers:
    if labels == "constant":
        return np.zeros(count, dtype=np.int64)
    if labels == "degree":
        return np.bincount(target, minlength=count).astype(np.int64)
    if labels != "given":
        raise ConfigError(f"wl_colors: labels must be given, constant or degree, got {labels!r}")
    if any(graph.x is None for graph in dataset):
        raise DataError(
            "wl_colors: every graph must have node labels x, got None; pass labels='degree' or "
            "'constant'"
        )
    return _distinct(torch.cat([_matrix(graph.x) for graph in dataset]))


def _edge_labels(dataset: Sequence[Data], count: int) -> Integers:
    found = [_matrix(g.edge_attr) for g in dataset if g.edge_attr is not None and len(g.edge_attr)]
    lacking = sum(graph.edge_attr is None and graph.num_edges > 0 for graph in dataset)
    if found and lacking:
        raise DataError(
            f"wl_colors: edge_attr must be there for the edges of all graphs or of none, got "
            f"{lacking} of {len(dataset)} graphs without; add it, or pass use_edge_labels=False"
        )
    return _distinct(torch.cat(found)) if found else np.zeros(count, dtype=np.int64)


def _matrix(values: Tensor) -> Tensor:
    return values[:, None] if values.ndim == 1 else values.flatten(1)


def _distinct(rows: Tensor) -> Integers:
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    inverse: Integers = torch.unique(rows, dim=0, return_inverse=True)[1].numpy()
    return inverse


def tree_sizes(graph: Data, hops: int) -> Tensor:
    """Edges of the computation tree of every node [N] float64, counted without a tree."""
    count = int(graph.num_nodes or 0)
    source, target = graph.edge_index
    size = torch.ones(count, dtype=torch.float64)
    for _ in range(hops):
        size = torch.ones_like(size).index_add_(0, target, size[source])
    return size - 1


class Tree(NamedTuple):
    """A computation tree; node 0 is the root.

    Attributes:
        nodes: For each tree node its node in the graph [n].
        edge_index: From child to parent [2 n-1].
        edges: For each tree edge its edge in the graph [n-1].
    """

    nodes: Tensor
    edge_index: Tensor
    edges: Tensor


def expand_tree(graph: Data, node: int, hops: int, max_nodes: int = 100_000) -> Tree:
    """The computation tree of a node: all neighbours of all nodes, parents included, L times.

    Args:
        graph: With ``edge_index`` [2 E]; messages flow from row 0 to row 1.
        node: The root.
        hops: Depth L.
        max_nodes: Refuse trees that grow larger: they do so with degree ** L.

    Raises:
        DataError: The tree is larger than ``max_nodes``.
    """
    source, target = graph.edge_index
    order = torch.argsort(target, stable=True)
    start = torch.searchsorted(target[order], torch.arange(int(graph.num_nodes or 0) + 1))
    levels, parents, used = [torch.tensor([node])], [torch.zeros(0, dtype=torch.long)], []
    begin, size = 0, 1
    for _ in range(hops):
        frontier = levels[-1]
        count = (start[frontier + 1] - start[frontier]).long()
        total = int(count.sum())
        if size + total > max_nodes:
            raise DataError(
                f"expand_tree: the tree of node {node} must have at most {max_nodes} nodes, got "
                f"{size + total} within {len(levels)} hops; lower hops or raise max_nodes"
            )
        first = torch.repeat_interleave(start[frontier] - (count.cumsum(0) - count), count)
        edge = order[first + torch.arange(total)]
        parents.append(begin + torch.repeat_interleave(torch.arange(len(frontier)), count))
        begin, size = size, size + total
        levels.append(source[edge])
        used.append(edge)
    parent = torch.cat(parents)
    children = torch.arange(1, size)
    edges = torch.cat(used) if used else torch.zeros(0, dtype=torch.long)
    return Tree(torch.cat(levels), torch.stack([children, parent]), edges)
