"""Distillers of the graph domain: which tensors go to which term."""

from __future__ import annotations

from torch_geometric.data import Data

from potstill.core import Distiller, Losses

__all__ = ["GraphToMLP", "Supervised"]


class GraphToMLP(Distiller):
    """GNN to MLP: the teacher is the column ``z_teacher`` of the graph, written once.

    The term ``task`` gets logits and labels of the training nodes; every other term gets
    ``(z_s, z_t, edge_index, edge_weight)`` of all nodes.

    Source: Wu et al. (FF-G2M), AAAI 2023; with `SoftLabel` alone, Zhang et al. (GLNN), ICLR 2022.
    """

    def forward(self, batch: Data, step: int) -> Losses:
        """Losses of the whole graph."""
        z, seen = self.student(batch.x), batch.train_mask
        labelled = (z[seen], batch.y[seen])
        matched = (z, batch.get("z_teacher"), batch.edge_index, batch.get("edge_weight"))
        names = self.objective.names
        return self.objective(step, {k: labelled if k == "task" else matched for k in names})


class Supervised(Distiller):
    """A model that sees the graph, on the labels of the training nodes: how teachers are made."""

    def forward(self, batch: Data, step: int) -> Losses:
        """Losses of the whole graph."""
        weight = batch.get("edge_weight")
        more = () if weight is None else (weight,)
        z, seen = self.student(batch.x, batch.edge_index, *more), batch.train_mask
        return self.objective(step, task=(z[seen], batch.y[seen]))
