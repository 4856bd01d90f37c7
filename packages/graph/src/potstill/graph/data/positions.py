"""Where a node lies in the graph, as features: for students that may see them (NOSMOG).

They are no longer graph-free: a new node needs its neighbours to have a position. On Cora and
CiteSeer they do not pay (``python -m benchmarks graph cora-positions citeseer-positions``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh
from torch import Tensor
from torch_geometric.data import Data

from potstill.core import ConfigError, DataError
from potstill.graph.data.tensors import as_features, is_sparse

__all__ = ["neighbour_positions", "walk_positions", "with_positions"]

_MOST = 20_000  # nodes: the logarithm needs the whole matrix of pairs


def walk_positions(
    edge_index: Tensor, num_nodes: int, size: int = 64, window: int = 10, rank: int = 256
) -> Tensor:
    """DeepWalk's embedding of every node in closed form, rows of unit length [N size].

    Source: Tian et al., "Learning MLPs on Graphs: A Unified View of Effectiveness, Robustness and
    Efficiency" (NOSMOG), ICLR 2023, section 4, takes DeepWalk (Perozzi et al., KDD 2014), which
    factorises ``log max(1, vol(G) / T sum_r (D^-1 A)^r D^-1)``, r = 1..T (Qiu et al., "Network
    Embedding as Matrix Factorization", WSDM 2018, Eq. (1) and Algorithm 4): no walks, no training,
    and no randomness.

    Args:
        edge_index: Both directions of every edge [2 E].
        num_nodes: N; nodes without edges get zeros.
        size: Columns.
        window: T, the length of a walk's window.
        rank: Eigenvectors that stand for the powers of the adjacency matrix.

    Raises:
        ConfigError: A size that is not from 1 to N - 2, or a window below 1.
        DataError: More nodes than the dense matrix of pairs allows.

    Example:
        >>> ring = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
        >>> walk_positions(torch.cat([ring, ring.flip(0)], 1), 6, size=2).shape
        torch.Size([6, 2])
    """
    if not (1 <= size <= num_nodes - 2 and window >= 1):
        raise ConfigError(
            f"walk_positions: size must be from 1 to N - 2 = {num_nodes - 2} and window at least "
            f"1, got {size} and {window}"
        )
    if num_nodes > _MOST:
        raise DataError(
            f"walk_positions: at most {_MOST} nodes are possible, got {num_nodes}; compute "
            "positions of a sample and pass the others through neighbour_positions"
        )
    ones = np.ones(edge_index.shape[1])
    a = sp.csr_matrix((ones, edge_index.cpu().numpy()), (num_nodes, num_nodes))
    degree = np.asarray(a.sum(1)).ravel()
    scale = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    normal = sp.diags(scale) @ a @ sp.diags(scale)
    value, vector = _largest(normal.toarray() if num_nodes < 4 * rank else normal, rank, "LA")
    powers = sum(np.clip(value, 0, 1) ** r for r in range(1, window + 1)) / window
    half = (scale[:, None] * vector * np.sqrt(powers)).astype(np.float32)
    pairs = half @ half.T * np.float32(degree.sum())
    np.log(np.maximum(pairs, 1, out=pairs), out=pairs)
    value, vector = _largest(pairs, size, "LM")
    vector[degree == 0] = 0  # no noise, which would become a direction
    found = torch.from_numpy(vector * np.sqrt(np.abs(value))).float()
    return torch.nn.functional.normalize(found, dim=1)


def _largest(matrix: Any, count: int, which: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Eigenpairs that are the largest, or largest in magnitude (``"LM"``), of a symmetric matrix.

    Lanczos is for few of many, so a dense matrix of which many are wanted is solved whole.
    """
    size = matrix.shape[0]
    if sp.issparse(matrix) or size > 4 * count:
        start = np.random.default_rng(0).standard_normal(size)  # eigsh would draw another
        found: tuple[NDArray[Any], NDArray[Any]] = eigsh(
            matrix, k=count, which=which, v0=start.astype(matrix.dtype)
        )
        return found
    value, vector = np.linalg.eigh(matrix)
    order = np.argsort(-np.abs(value) if which == "LM" else -value)[:count]
    return value[order], vector[:, order]


def neighbour_positions(positions: Tensor, edge_index: Tensor, count: int) -> Tensor:
    """Positions of new nodes: the mean over their neighbours, rows of unit length [count size].

    Source: Tian et al. (NOSMOG), ICLR 2023, section 4 (inductive setting).

    Args:
        positions: Positions of known nodes [N size].
        edge_index: From known (row 0) to new nodes (row 1) [2 E]; new nodes without edges get
            zeros.
        count: Number of new nodes.
    """
    source, target = edge_index
    total = positions.new_zeros(count, positions.shape[1])
    return torch.nn.functional.normalize(total.index_add_(0, target, positions[source]), dim=1)


def with_positions(data: Data, size: int = 64, weight: float = 1.0) -> Data:
    """A copy of a graph whose features are followed by positions; features keep their layout.

    Args:
        data: A checked graph.
        size: Columns that are added.
        weight: Their length relative to that of the mean row of features.
    """
    positions = walk_positions(data.edge_index, int(data.num_nodes or 0), size)
    values = data.x.values() if is_sparse(data.x) else data.x
    length = float(values.square().sum() / len(positions)) ** 0.5
    positions *= weight * length
    found = data.__copy__()
    if is_sparse(data.x):
        parts = (data.x.values(), data.x.col_indices(), data.x.crow_indices())
        x = sp.csr_matrix(tuple(part.numpy() for part in parts), tuple(data.x.shape))
        found.x = as_features(sp.hstack([x, sp.csr_matrix(positions.numpy())]).tocsr())
    else:
        found.x = torch.cat([data.x, positions], 1)
    return found
