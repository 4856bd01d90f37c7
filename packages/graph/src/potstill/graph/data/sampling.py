"""Subgraphs for teachers that do not fit: PyG's samplers where they run, parts of the graph else.

``NeighborLoader`` needs pyg-lib or torch-sparse, which have no wheels for many machines. They are
used if present and never required.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch_geometric import typing as pyg
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader

from potstill.core import BackendError, ConfigError, generator
from potstill.graph.data.check import ABOUT
from potstill.graph.data.tensors import is_sparse, rows

__all__ = ["has_sampler", "partition", "teacher_batches"]


def has_sampler() -> bool:
    """Whether PyG can sample neighbours here: pyg-lib or torch-sparse is installed."""
    return bool(pyg.WITH_PYG_LIB or pyg.WITH_TORCH_SPARSE)


def teacher_batches(
    data: Data,
    parts: int = 8,
    *,
    fanout: Sequence[int] = (10, 10),
    sampler: Literal["auto", "neighbors", "parts"] = "auto",
    seed: int = 0,
) -> Callable[[int, int, int], Data] | list[Data]:
    """Batches of a graph for `potstill.core.fit` and `potstill.graph.Supervised`.

    Args:
        data: A checked graph.
        parts: Into how many the training nodes (``"neighbors"``) or the graph (``"parts"``) go.
        fanout: Neighbours to sample, hop by hop: as many hops as the teacher has layers.
        sampler: ``"neighbors"``: training nodes and sampled neighbours (Hamilton, Ying, Leskovec,
            NeurIPS 2017), by PyG; ``"parts"``: `partition`; ``"auto"``: the former where it runs.
        seed: Seed of the draws.

    Returns:
        A function of step, rank and world, or the parts that hold a training node.

    Raises:
        ConfigError: An unknown sampler, or a number of parts that the graph does not allow.
        BackendError: ``"neighbors"`` where neither pyg-lib nor torch-sparse is installed.

    Example:
        >>> from potstill.graph.data.datasets import load
        >>> len(teacher_batches(load("digits"), parts=4, sampler="parts"))
        4
    """
    if sampler not in ("auto", "neighbors", "parts"):
        raise ConfigError(
            f"teacher_batches: sampler must be auto, neighbors or parts, got {sampler!r}"
        )
    if sampler == "neighbors" and not has_sampler():
        raise BackendError(
            "teacher_batches: sampler 'neighbors' must have pyg-lib or torch-sparse, got neither; "
            "install one (https://data.pyg.org), or pass sampler='parts'"
        )
    if sampler == "parts" or not has_sampler():
        return [part for part in partition(data, parts) if bool(part.train_mask.any())]
    return _neighbors(data, parts, list(fanout), seed)


def _neighbors(
    data: Data, parts: int, fanout: list[int], seed: int
) -> Callable[[int, int, int], Data]:
    seen = data.train_mask.nonzero().flatten()
    if not 1 <= parts <= len(seen):
        raise ConfigError(
            f"teacher_batches: parts must be from 1 to {len(seen)} training nodes, got {parts}"
        )
    if is_sparse(data.x):  # PyG's loaders index rows, which torch's CSR does not allow
        data = data.__copy__()
        data.x = data.x.to_dense()
    size = -(-len(seen) // parts)
    with warnings.catch_warnings():  # PyG wants pyg-lib; torch-sparse samples as well
        warnings.filterwarnings("ignore", message="Using 'NeighborSampler' without a 'pyg-lib'")
        loader = NeighborLoader(data, fanout, input_nodes=seen, batch_size=size)

    def draw(step: int, rank: int, world: int) -> Data:
        order = torch.randperm(len(seen), generator=generator("teacher", seed, step))
        with torch.random.fork_rng(devices=()):  # the sampler draws from the global stream
            torch.manual_seed(generator("neighbors", seed, step, rank).initial_seed())
            batch: Any = loader(order[rank::world][:size])
        batch.train_mask = torch.arange(batch.num_nodes) < batch.batch_size
        return batch

    return draw


def partition(data: Data, parts: int) -> Iterator[Data]:
    """Induced subgraphs of about equal size, for teachers that do not fit: no pyg-lib is needed.

    Nodes are put in the order of reverse Cuthill and McKee (1969), in which neighbours are near
    each other, and cut; edges between parts are lost.

    Args:
        data: A checked graph.
        parts: Number of parts.

    Raises:
        ConfigError: ``parts`` is not from 1 to the number of nodes.
    """
    import scipy.sparse as sp
    from scipy.sparse.csgraph import reverse_cuthill_mckee
    from torch_geometric.utils import subgraph

    count = int(data.num_nodes or 0)
    if not 1 <= parts <= count:
        raise ConfigError(f"partition: parts must be from 1 to {count} nodes, got {parts}")
    ones = np.ones(data.edge_index.shape[1], dtype=np.int8)
    matrix = sp.csr_matrix((ones, data.edge_index.numpy()), (count, count))
    order = torch.from_numpy(reverse_cuthill_mckee(matrix, symmetric_mode=True).copy()).long()
    for nodes in order.chunk(parts):
        nodes = nodes.sort().values
        edges, weight = subgraph(
            nodes, data.edge_index, data.get("edge_weight"), relabel_nodes=True, num_nodes=count
        )
        masks = {k: data[k][nodes] for k in ("train_mask", "val_mask", "test_mask")}
        part = Data(
            x=rows(data.x, nodes),
            edge_index=edges,
            y=data.y[nodes],
            **masks,
            **{name: data[name] for name in ABOUT if data.get(name) is not None},
        )
        if weight is not None:
            part.edge_weight = weight
        yield part
