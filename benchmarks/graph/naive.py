"""The official formulation, written out: dense features, every edge gathered, nothing kept.

What `potstill.graph` is raced against: PyG's GCN on dense features, the loss edge by edge with the
teacher's side computed in every step, and three evaluation passes an epoch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCNConv
from torch_geometric.utils import add_self_loops


def low(z_s: Tensor, z_t: Tensor, edges: Tensor) -> Tensor:
    """Low-frequency term over `edges`, self-loops included."""
    source, target = edges
    return F.kl_div(z_s[target].log_softmax(1), z_t[source].softmax(1), reduction="batchmean")


def high(z_s: Tensor, z_t: Tensor, edges: Tensor, tau: float) -> Tensor:
    """High-frequency term over `edges` without self-loops."""
    i, j = edges
    d_s, d_t = (z_s[i] - z_s[j]).abs() / tau, (z_t[i] - z_t[j]).abs() / tau
    return F.kl_div(d_s.log_softmax(1), d_t.softmax(1), reduction="batchmean")


class Criterion:
    """Both terms with weight one."""

    def __init__(self, edges: Tensor, nodes: int, tau: float) -> None:
        self.edges, self.tau = edges, tau
        self.with_loops = add_self_loops(edges, num_nodes=nodes)[0]

    def __call__(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """The sum of both terms."""
        return low(z_s, z_t, self.with_loops) + high(z_s, z_t, self.edges, self.tau)


class MLP(nn.Module):
    """A plain MLP on dense features."""

    def __init__(self, widths: list[int], dropout: float) -> None:
        super().__init__()
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for layer in self.layers[:-1]:
            x = F.dropout(layer(x).relu(), self.dropout, self.training)
        return self.layers[-1](x)


class GCN(nn.Module):
    """PyG's graph convolutions on dense features."""

    def __init__(self, widths: list[int], dropout: float, cached: bool = True) -> None:
        super().__init__()
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(GCNConv(a, b, cached=cached) for a, b in pairs)
        self.dropout = dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits."""
        for layer in self.layers[:-1]:
            x = F.dropout(layer(x, edge_index).relu(), self.dropout, self.training)
        return self.layers[-1](x, edge_index)


def copy_gcn(teacher: nn.Module, cached: bool = True) -> GCN:
    """PyG's GCN with the weights of a `GCNTeacher`."""
    weights = [linear.weight for linear in teacher.maps]
    naive = GCN([weights[0].shape[1], *(len(w) for w in weights)], teacher.dropout, cached)
    for layer, weight, bias in zip(naive.layers, weights, teacher.biases, strict=True):
        layer.lin.weight.data, layer.bias.data = weight.data.clone(), bias.data.clone()
    return naive


def copy_mlp(student: nn.Module) -> MLP:
    """The naive MLP with the weights of an `MLPStudent`."""
    widths = [student.layers[0].in_features, *(layer.out_features for layer in student.layers)]
    naive = MLP(widths, student.dropout)
    naive.load_state_dict(student.state_dict())
    return naive


def evaluate(model: nn.Module, inputs: tuple[Tensor, ...], masks: list[Tensor], y: Tensor) -> list:
    """Accuracy on each mask, with a forward pass for each."""
    model.eval()
    found = []
    with torch.no_grad():
        for mask in masks:
            z = model(*inputs)
            found.append(float((z[mask].argmax(1) == y[mask]).float().mean()))
    model.train()
    return found
