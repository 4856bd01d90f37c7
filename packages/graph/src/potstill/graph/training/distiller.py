"""Distillers of the graph domain: which tensors go to which term."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_geometric.data import Data

from potstill.core import Distiller, Losses
from potstill.graph.data.tensors import Memo

__all__ = ["GraphToMLP", "Supervised"]


class _OnLabels(Distiller):
    """Knows the labelled nodes of a graph by number: masks make a GPU wait in each step."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seen = Memo()

    def labelled(self, z: Tensor, batch: Data) -> tuple[Tensor, Tensor]:
        """Logits and labels of the training nodes."""
        seen, y = self._seen(_seen, batch.train_mask, batch.y)
        return z[seen], y


def _seen(mask: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    nodes = mask.nonzero()[:, 0]
    return nodes, y[nodes]


class GraphToMLP(_OnLabels):
    """GNN to MLP: the teacher is the column ``z_teacher`` of the graph, written once.

    The term ``task`` gets logits and labels of the training nodes; every other term gets
    ``(z_s, z_t, edge_index, edge_weight)`` of all nodes.

    Source: Wu et al. (FF-G2M), AAAI 2023; with `SoftLabel` alone, Zhang et al. (GLNN), ICLR 2022.
    """

    def forward(self, batch: Data, step: int) -> Losses:
        """Losses of the whole graph."""
        z = self.student(batch.x)
        labelled = self.labelled(z, batch)
        matched = (z, batch.get("z_teacher"), batch.edge_index, batch.get("edge_weight"))
        names = self.objective.names
        return self.objective(step, {k: labelled if k == "task" else matched for k in names})


class Supervised(_OnLabels):
    """A model that sees the graph, on the labels of the training nodes: how teachers are made."""

    def forward(self, batch: Data, step: int) -> Losses:
        """Losses of the whole graph."""
        weight = batch.get("edge_weight")
        more = () if weight is None else (weight,)
        z = self.student(batch.x, batch.edge_index, *more)
        return self.objective(step, task=self.labelled(z, batch))
