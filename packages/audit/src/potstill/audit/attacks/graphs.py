"""Triggers of nodes: their features, and a small subgraph hung on them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from potstill.core import ConfigError

__all__ = ["FeatureTrigger", "SubgraphTrigger", "poison_nodes"]

MOST = 100  # nodes that are triggered at once; more and their neighbourhoods meet


@dataclass(frozen=True)
class FeatureTrigger:
    """Feature columns of a node set to one value.

    Args:
        dims: The columns.
        value: Their value, before rows are normalised.
        normalize: Divide the changed rows by their sum, as data sets with normalised rows need.
    """

    dims: Sequence[int]
    value: float = 1.0
    normalize: bool = False

    def __call__(self, graph: Any, nodes: Int[Tensor, " nodes"]) -> Any:
        """A copy of the graph in which the nodes have the trigger.

        Args:
            graph: A PyG ``Data`` with ``x`` and ``edge_index``.
            nodes: The nodes.

        Raises:
            ConfigError: Columns that are none, or too many nodes at once.
        """
        _check(graph, nodes, self.dims)
        changed = copy.copy(graph)
        rows = dense_rows(graph.x, nodes).clone()
        rows[:, list(self.dims)] = self.value
        if self.normalize:
            rows = rows / rows.sum(1, keepdim=True).clamp_min(1e-12)
        changed.x = with_rows(graph.x, nodes, rows)
        return changed


@dataclass(frozen=True)
class SubgraphTrigger:
    """A clique of new nodes with chosen features, joined to a node by one of them.

    The node's own features stay: a model that reads only those answers bit for bit as before.

    Args:
        dims: Feature columns of the new nodes that are set.
        nodes: New nodes for each triggered one.
        value: Value of those columns.
    """

    dims: Sequence[int]
    nodes: int = 3
    value: float = 1.0

    def __call__(self, graph: Any, nodes: Int[Tensor, " nodes"]) -> Any:
        """A copy of the graph with the new nodes after all others; both directions of each edge.

        Args:
            graph: A PyG ``Data`` with ``x`` and ``edge_index``.
            nodes: The nodes that get a subgraph.

        Raises:
            ConfigError: Columns that are none, fewer than one new node, or too many nodes at once.
        """
        _check(graph, nodes, self.dims)
        if self.nodes < 1:
            raise ConfigError(f"SubgraphTrigger: nodes must be at least 1, got {self.nodes}")
        total, k = graph.num_nodes, self.nodes
        first = total + k * torch.arange(len(nodes))
        pairs = torch.combinations(torch.arange(k), 2)
        inside = (first[:, None, None] + pairs).reshape(-1, 2)
        edges = torch.cat([inside, torch.stack([nodes.cpu(), first], 1)])
        edges = torch.cat([edges, edges.flip(1)]).mT.to(graph.edge_index)
        changed, count = copy.copy(graph), k * len(nodes)
        changed.x = _appended(graph.x, count, sorted(self.dims), self.value)
        changed.edge_index = torch.cat([graph.edge_index, edges], 1)
        for name in ("train_mask", "val_mask", "test_mask"):
            if name in graph:
                mask = graph[name]
                changed[name] = torch.cat([mask, mask.new_zeros(count)])
        if "y" in graph:
            changed.y = torch.cat([graph.y, graph.y.new_zeros(count)])
        changed.num_nodes = len(changed.x)
        return changed


def poison_nodes(
    graph: Any,
    trigger: FeatureTrigger | SubgraphTrigger,
    target: int,
    nodes: Int[Tensor, " nodes"],
) -> Any:
    """A graph in which some nodes have the trigger, the target's label, and are trained on.

    Keep the budget small: relabelled nodes beside few labels make a model collapse into the target
    class, which looks like a backdoor and is none. Print its clean accuracy.

    Args:
        graph: A PyG ``Data`` with ``x``, ``edge_index``, ``y`` and ``train_mask``.
        trigger: The trigger.
        target: Class that triggered nodes are to get.
        nodes: The nodes to poison.

    Raises:
        ConfigError: A target that is no class, a node that has it already, or a trigger that
            refuses.
    """
    classes = int(graph.y.max()) + 1
    if not 0 <= target < classes:
        raise ConfigError(
            f"poison_nodes: target must be a class from 0 to {classes - 1}, got {target}"
        )
    if bool((graph.y[nodes] == target).any()):
        raise ConfigError(
            f"poison_nodes: nodes must be of other classes than the target {target}, got "
            f"{int((graph.y[nodes] == target).sum())} of it"
        )
    changed = trigger(graph, nodes)
    changed.y, changed.train_mask = changed.y.clone(), changed.train_mask.clone()
    changed.y[nodes], changed.train_mask[nodes] = target, True
    return changed


def dense_rows(x: Tensor, nodes: Tensor) -> Tensor:
    """Rows of a dense or CSR matrix, dense; the other rows of a CSR matrix stay as they are."""
    if x.layout == torch.strided:
        return x[nodes]
    return torch.stack([x[int(node)].to_dense() for node in nodes])


def with_rows(x: Tensor, nodes: Tensor, rows: Tensor) -> Tensor:
    """A matrix with other rows, dense or CSR as it was."""
    if x.layout == torch.strided:
        x = x.clone()
        x[nodes] = rows
        return x
    found = x.to_sparse_coo().coalesce()
    kept = ~torch.isin(found.indices()[0], nodes)
    row, column = rows.nonzero(as_tuple=True)
    indices = torch.cat([found.indices()[:, kept], torch.stack([nodes[row], column])], 1)
    values = torch.cat([found.values()[kept], rows[row, column]])
    return (
        torch.sparse_coo_tensor(indices, values, x.shape, check_invariants=False)
        .coalesce()
        .to_sparse_csr()
    )


def _appended(x: Tensor, count: int, dims: list[int], value: float) -> Tensor:
    """A matrix with ``count`` more rows that have ``value`` in some columns."""
    if x.layout == torch.strided:
        new = x.new_zeros(count, x.shape[1])
        new[:, dims] = value
        return torch.cat([x, new])
    first, columns, values = x.crow_indices(), x.col_indices(), x.values()
    starts = first[-1] + len(dims) * torch.arange(1, count + 1).to(first)
    return torch.sparse_csr_tensor(
        torch.cat([first, starts]),
        torch.cat([columns, torch.tensor(dims).to(columns).repeat(count)]),
        torch.cat([values, values.new_full((count * len(dims),), value)]),
        (len(x) + count, x.shape[1]),
        check_invariants=False,
    )


def _check(graph: Any, nodes: Tensor, dims: Sequence[int]) -> None:
    width = graph.x.shape[1]
    wrong = [dim for dim in dims if not 0 <= dim < width]
    if wrong or not dims:
        raise ConfigError(
            f"trigger: dims must be feature columns from 0 to {width - 1}, got {list(dims)}"
        )
    if not 0 < len(nodes) <= MOST:
        raise ConfigError(
            f"trigger: nodes must be 1 to {MOST} at once, got {len(nodes)}; with more their "
            "neighbourhoods meet: trigger them in groups"
        )
    edges = graph.edge_index[0] * graph.num_nodes + graph.edge_index[1]
    back = graph.edge_index[1] * graph.num_nodes + graph.edge_index[0]
    if not torch.equal(edges.unique(), back.unique()):
        warnings.warn(
            "trigger: edge_index holds edges in one direction only; a subgraph trigger adds both "
            "directions (torch_geometric.utils.to_undirected makes a graph undirected)",
            stacklevel=3,
        )
