"""Teachers that see the graph.

They take node features [N F], dense or CSR, and ``edge_index``, so any PyG module with
``forward(x, edge_index)`` can stand in for them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch_geometric.nn import GATConv

from potstill.core import ConfigError
from potstill.graph.data.tensors import Memo, csr, is_sparse, rows
from potstill.graph.kernels.product import product
from potstill.graph.models.activation import relu_dropout
from potstill.graph.models.propagate import (
    FeatureLinear,
    neighbour_mean,
    propagate,
    random_walk,
    symmetric,
)
from potstill.graph.models.student import MLPStudent, check_dropout, widths_of

__all__ = [
    "APPNPTeacher",
    "GATTeacher",
    "GCNTeacher",
    "MeanTeacher",
    "SAGETeacher",
    "make_teacher",
]


class _Propagating(nn.Module):
    """Layers of a linear map and a fixed averaging over neighbours, in the cheaper order."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        widths = widths_of(name, (in_channels, out_channels), hidden_channels, num_layers)
        self.dropout = check_dropout(name, dropout)
        self.maps = nn.ModuleList(FeatureLinear(a, b, bias=False) for a, b in pairwise(widths))
        self.biases = nn.ParameterList(torch.zeros(width) for width in widths[1:])
        self._adjacency = Memo()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: Glorot-uniform, biases zero."""
        for layer in self.maps:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        for bias in self.biases:
            nn.init.zeros_(bias)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """Logits [N C] of all nodes of a graph."""
        forth, back = self._adjacency(self.adjacency, edge_index, x.shape[0], edge_weight)
        last = len(self.maps) - 1
        for i, (linear, bias) in enumerate(zip(self.maps, self.biases, strict=True)):
            if is_sparse(x) or len(bias) <= x.shape[1]:
                x = propagate(forth, back, linear(x)).add_(bias)
            else:
                x = linear(propagate(forth, back, x)).add_(bias)
            if i < last:
                x = relu_dropout(x, self.dropout, self.training)
        return x

    @torch.no_grad()
    def logits_of(
        self, nodes: Tensor, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Float[Tensor, "some classes"]:
        """Logits of some nodes, those of `forward`, in the time that their neighbourhood takes.

        Neighbour lists are made once a graph; then each layer reads the rows that it needs, with
        the degrees of the whole graph. In eval mode.

        Args:
            nodes: [M] int64.
            x: Features of all nodes [N F], dense or CSR.
            edge_index: [2 E]; the same tensor in each call, else the lists are made again.
            edge_weight: [E], or None.
        """
        matrix, _ = self._adjacency(self.adjacency, edge_index, x.shape[0], edge_weight)
        around, nodes = _around(matrix, nodes, len(self.maps))
        x = rows(x, nodes)
        for linear, bias in zip(self.maps, self.biases, strict=True):
            x = product(around.pop()[0], linear(x)).add_(bias)
            x = x.relu_() if around else x
        return x

    @staticmethod
    def adjacency(
        edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What averages over neighbours [N N], and its transpose, both CSR."""
        raise NotImplementedError


class GCNTeacher(_Propagating):
    """Graph convolutions with symmetric normalisation and self-loops.

    Source: Kipf and Welling, ICLR 2017, Eq. (2): ``X' = D^-1/2 (A + I) D^-1/2 X W + b``.
    ReLU and dropout after hidden layers, none on the input; the averaging is made once a graph.

    Args:
        in_channels: Features of a node.
        hidden_channels: Width of the hidden layers.
        num_layers: Convolutions, at least 1.
        out_channels: Classes.
        dropout: After each hidden layer, in [0, 1).

    Raises:
        ConfigError: A size below 1, or a dropout outside [0, 1).

    Example:
        >>> teacher = GCNTeacher(8, 16, 2, 3).eval()
        >>> teacher(torch.rand(4, 8), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([4, 3])
    """

    adjacency = staticmethod(symmetric)


class SAGETeacher(_Propagating):
    """GraphSAGE with the "gcn" aggregator: a mean over the node and its neighbours.

    Source: Hamilton, Ying, Leskovec, NeurIPS 2017, Eq. (2). As in FF-G2M's graphs, which carry
    self-loops already, the node itself counts twice. Arguments as of `GCNTeacher`.
    """

    adjacency = staticmethod(random_walk)


class MeanTeacher(nn.Module):
    """GraphSAGE with the mean aggregator: separate maps of the node and of its neighbours' mean.

    Source: Hamilton, Ying, Leskovec, NeurIPS 2017, Algorithm 1: ``X' = X W_1 + mean(X_j) W_2 + b``.
    Arguments as of `GCNTeacher`; weights of edges weigh the mean.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        widths = widths_of("MeanTeacher", (in_channels, out_channels), hidden_channels, num_layers)
        self.dropout = check_dropout("MeanTeacher", dropout)
        self.own = nn.ModuleList(FeatureLinear(a, b) for a, b in pairwise(widths))
        self.maps = nn.ModuleList(FeatureLinear(a, b, bias=False) for a, b in pairwise(widths))
        self._adjacency = Memo()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: Glorot-uniform, biases zero."""
        for layer in (*self.own, *self.maps):
            nn.init.xavier_uniform_(layer.weight)
        for layer in self.own:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """Logits [N C] of all nodes of a graph."""
        forth, back = self._adjacency(neighbour_mean, edge_index, x.shape[0], edge_weight)
        for i, (own, near) in enumerate(zip(self.own, self.maps, strict=True)):
            x = own(x) + propagate(forth, back, near(x))
            if i < len(self.own) - 1:
                x = relu_dropout(x, self.dropout, self.training)
        return x

    @torch.no_grad()
    def logits_of(
        self, nodes: Tensor, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Float[Tensor, "some classes"]:
        """Logits of some nodes, those of `forward`, as `GCNTeacher.logits_of` has them."""
        matrix, _ = self._adjacency(neighbour_mean, edge_index, x.shape[0], edge_weight)
        around, nodes = _around(matrix, nodes, len(self.maps))
        x = rows(x, nodes)
        for own, near in zip(self.own, self.maps, strict=True):
            lists, here = around.pop()
            x = own(rows(x, here)) + product(lists, near(x))
            x = x.relu_() if around else x
        return x


class APPNPTeacher(nn.Module):
    """An MLP whose logits spread by personalised PageRank.

    Source: Gasteiger, Bojchevski, Guennemann, ICLR 2019, Eq. (4): ``Z' = (1 - a) S Z + a H``, ten
    times, with a = 0.1. Arguments as of `GCNTeacher`.
    """

    steps, restart = 10, 0.1

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.body = MLPStudent(in_channels, hidden_channels, num_layers, out_channels, dropout)
        self._adjacency = Memo()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.body.reset_parameters()

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """Logits [N C] of all nodes of a graph."""
        forth, back = self._adjacency(symmetric, edge_index, x.shape[0], edge_weight)
        own = self.body(x)
        z = own.to(forth.dtype)
        for _ in range(self.steps):
            z = (1 - self.restart) * propagate(forth, back, z) + self.restart * own
        return z

    @torch.no_grad()
    def logits_of(
        self, nodes: Tensor, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Float[Tensor, "some classes"]:
        """Logits of some nodes, those of `forward`, as `GCNTeacher.logits_of` has them."""
        matrix, _ = self._adjacency(symmetric, edge_index, x.shape[0], edge_weight)
        around, nodes = _around(matrix, nodes, self.steps)
        own = self.body(rows(x, nodes))
        z = own.to(matrix.dtype)
        for lists, here in reversed(around):
            own = own[here]
            z = (1 - self.restart) * product(lists, z) + self.restart * own
        return z


class GATTeacher(nn.Module):
    """Graph attention: PyG's `GATConv`, with dropout on the input of every layer.

    Source: Velickovic et al., ICLR 2018, Eq. (3)-(5).

    Args:
        in_channels: Features of a node.
        hidden_channels: Width of the hidden layers, all heads together.
        num_layers: Convolutions, at least 1; the last one has one head.
        out_channels: Classes.
        dropout: On the input of every layer, in [0, 1).
        heads: Heads of the hidden layers; divides ``hidden_channels``.
        attention_dropout: On the attention coefficients, in [0, 1).

    Raises:
        ConfigError: A size below 1, a dropout outside [0, 1), or heads that do not divide
            ``hidden_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
        heads: int = 4,
        attention_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        widths = widths_of("GATTeacher", (in_channels, out_channels), hidden_channels, num_layers)
        self.dropout = check_dropout("GATTeacher", dropout)
        if heads < 1 or hidden_channels % heads:
            raise ConfigError(
                f"GATTeacher: hidden_channels must be a multiple of heads, got {hidden_channels} "
                f"and {heads}"
            )
        self.convolutions = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(widths)):
            k = heads if i < num_layers - 1 else 1
            self.convolutions.append(GATConv(a, b // k, heads=k, dropout=attention_dropout))
        self.convolutions[0].lin = FeatureLinear(in_channels, widths[1], bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights, as PyG does."""
        for layer in self.convolutions:
            layer.reset_parameters()  # type: ignore[operator]
            nn.init.xavier_uniform_(layer.lin.weight)  # type: ignore[union-attr, arg-type]

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Float[Tensor, "nodes classes"]:
        """Logits [N C] of all nodes of a graph; attention makes its own weights.

        Raises:
            ConfigError: Weights of edges, which have no place here.
        """
        if edge_weight is not None:
            raise ConfigError(
                "GATTeacher: edge_weight must be None, since attention weighs the edges itself; "
                "remove it from the graph, or take a GCN or SAGE"
            )
        for i, layer in enumerate(self.convolutions):
            x = relu_dropout(x, self.dropout, self.training) if i else self._drop(x)
            x = layer(x, edge_index)
        return x

    def _drop(self, x: Tensor) -> Tensor:
        """Dropout on features; zeros that are not stored need none."""
        if not is_sparse(x):
            return F.dropout(x, self.dropout, self.training)
        if not self.training or self.dropout == 0:
            return x
        shape = (x.shape[0], x.shape[1])
        return csr(x.crow_indices(), x.col_indices(), F.dropout(x.values(), self.dropout), shape)


def _around(matrix: Tensor, nodes: Tensor, hops: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The neighbour lists of each hop, and all nodes that are reached.

    With each list [nodes of this hop, nodes of the next] where the former are among the latter.
    """
    found = []
    for _ in range(hops):
        near = rows(matrix, nodes)
        column = near.col_indices()
        wider, place = torch.unique(torch.cat([column, nodes]), return_inverse=True)
        lists, here = place.split([len(column), len(nodes)])
        size = (len(nodes), len(wider))
        found.append((csr(near.crow_indices(), lists, near.values(), size), here))
        nodes = wider
    return found, nodes


_TEACHERS = {
    "GCN": GCNTeacher, "SAGE": SAGETeacher, "SAGE-mean": MeanTeacher, "GAT": GATTeacher,
    "APPNP": APPNPTeacher,
}  # fmt: skip


def make_teacher(kind: str, *sizes: int, dropout: float = 0.5) -> nn.Module:
    """A teacher called ``GCN``, ``SAGE``, ``SAGE-mean``, ``GAT`` or ``APPNP``.

    Args:
        kind: Its name; upper and lower case do not matter.
        *sizes: As its constructor takes them.
        dropout: In [0, 1).

    Raises:
        ConfigError: An unknown name.
    """
    known = {name.lower(): make for name, make in _TEACHERS.items()}
    if kind.lower() not in known:
        raise ConfigError(f"make_teacher: kind must be one of {', '.join(_TEACHERS)}, got {kind!r}")
    make: Any = known[kind.lower()]
    teacher: nn.Module = make(*sizes, dropout=dropout)
    return teacher
