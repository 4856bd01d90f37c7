"""Averages over neighbours, and the linear layer that reads sparse features.

Both are products with a constant sparse matrix, so the backward pass needs only its transpose,
which is made once; torch would convert layouts in every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from potstill.graph.data.tensors import Memo, check_csr, compress, is_sparse, transposed
from potstill.graph.kernels import PRODUCTS

__all__ = ["FeatureLinear", "neighbour_mean", "propagate", "random_walk", "symmetric"]


class _Constant(torch.autograd.Function):
    """``matrix @ x`` for a constant CSR matrix whose transpose is known."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transpose: Tensor, x: Tensor) -> Tensor:
        ctx.transpose = transpose
        return _product(matrix, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, _product(ctx.transpose, gradient)


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x``, by the C++ kernel where there is enough work to pay for packing ``x``."""
    large = matrix.values().numel() >= 8 * len(x) and x.shape[1] >= 32
    single = x.dtype == matrix.dtype == torch.float32
    backend = PRODUCTS.resolve("auto" if large and single else "torch", x.device)
    return backend.run(matrix, x)


def propagate(matrix: Tensor, transpose: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x`` with gradient to ``x`` only.

    Args:
        matrix: CSR [M N], constant.
        transpose: CSR [N M].
        x: Dense [N K]; converted to the type of ``matrix`` where autocast made it shorter.

    Returns:
        Dense [M K], of the type of ``matrix``.
    """
    result: Tensor = _Constant.apply(matrix, transpose, x.to(matrix.dtype))
    return result


class FeatureLinear(nn.Linear):
    """A linear layer for features that are dense or CSR; CSR features get no gradient.

    The weight [H F] lies in memory feature by feature: a product with sparse rows reads whole
    columns of it, and its gradient comes out in that order. Otherwise torch would copy the matrix
    in every call, which for one row of Coauthor-CS takes two hundred times as long as the product.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous().T)
        self._transpose, self._checked = Memo(), Memo()

    def forward(self, x: Tensor) -> Tensor:
        """``x W^T + b``, [N F] -> [N H]."""
        if not is_sparse(x):
            return super().forward(x)
        self._checked(check_csr, x)
        transpose = x if not torch.is_grad_enabled() else self._transpose(transposed, x)
        out = propagate(x, transpose, self.weight.T)
        return out if self.bias is None else out.add_(self.bias)


def symmetric(
    edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``D^-1/2 (A + I) D^-1/2`` and its transpose, CSR; isolated nodes keep themselves.

    Args:
        edge_index: [2 E] without self-loops; row 0 is the source, row 1 the target of a message.
        num_nodes: N.
        edge_weight: [E], or None for ones.
    """
    source, target, weight = _with_loops(edge_index, num_nodes, edge_weight, loop=1.0)
    degree = torch.zeros(num_nodes, device=weight.device).index_add_(0, target, weight)
    scale = degree.rsqrt()  # at least 1 thanks to the self-loop
    return _both(target, source, scale[target] * weight * scale[source], num_nodes)


def random_walk(
    edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``D^-1 (A + 2 I)`` and its transpose, CSR: the mean in which the node counts twice."""
    source, target, weight = _with_loops(edge_index, num_nodes, edge_weight, loop=2.0)
    degree = torch.zeros(num_nodes, device=weight.device).index_add_(0, target, weight)
    return _both(target, source, weight / degree[target], num_nodes)


def neighbour_mean(
    edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``D^-1 A`` and its transpose, CSR: the mean of the neighbours, zero where there are none."""
    source, target = edge_index
    weight = torch.ones_like(source, dtype=torch.float32) if edge_weight is None else edge_weight
    degree = torch.zeros(num_nodes, device=source.device).index_add_(0, target, weight.float())
    share = weight / degree.clamp_min(torch.finfo(degree.dtype).tiny)[target]
    return _both(target, source, share.float(), num_nodes)


def _with_loops(
    edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None, loop: float
) -> tuple[Tensor, Tensor, Tensor]:
    nodes = torch.arange(num_nodes, device=edge_index.device)
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.shape[1], device=edge_index.device)
    weight = torch.cat([edge_weight.float(), torch.full_like(nodes, loop, dtype=torch.float32)])
    return torch.cat([edge_index[0], nodes]), torch.cat([edge_index[1], nodes]), weight


def _both(rows: Tensor, columns: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return (
        compress(rows, columns, values, (size, size)),
        compress(columns, rows, values, (size, size)),
    )
