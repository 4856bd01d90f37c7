"""Training on distilled graphs and testing on whole ones: readout, data, and a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.io import read_tu_data
from torch_geometric.nn import GIN
from torch_geometric.utils import scatter

from potstill.core import (
    ConfigError,
    Distiller,
    Engine,
    Losses,
    Objective,
    Validation,
    fit,
    generator,
    locate,
    seed_all,
)
from potstill.graph.mirage.dataset import DistilledDataset, WeightedGraphSampler
from potstill.graph.training.scores import roc_auc

__all__ = [
    "GraphClassifier",
    "RootReadout",
    "Split",
    "auc",
    "load_tu",
    "random_sample",
    "split_graphs",
    "train_classifier",
]


class RootReadout(nn.Module):
    """Pool the roots of trees, or all nodes of graphs that have none marked.

    Args:
        aggr: ``"sum"``, as in Mirage, or ``"mean"``, which a different number of roots moves less.

    Raises:
        ConfigError: Another ``aggr``.
    """

    def __init__(self, aggr: str = "sum") -> None:
        super().__init__()
        if aggr not in ("sum", "mean"):
            raise ConfigError(f"RootReadout: aggr must be sum or mean, got {aggr!r}")
        self.aggr = aggr

    def forward(self, h: Tensor, batch: Tensor, size: int, root_mask: Tensor | None) -> Tensor:
        """Nodes [N K] of ``size`` graphs to graphs [size K]."""
        if root_mask is not None:  # others go to one graph more: to pick rows would wait for a GPU
            batch = torch.where(root_mask, batch, size)
        pooled: Tensor = scatter(h, batch, dim=0, dim_size=size + 1, reduce=self.aggr)
        return pooled[:size]


class GraphClassifier(nn.Module):
    """PyG's `GIN` (Xu et al., ICLR 2019) and a readout that knows roots.

    Args:
        in_channels: Features of a node.
        hidden_channels: Width.
        num_layers: Layers; the depth of the trees it may train on.
        out_channels: Classes.
        dropout: In [0, 1).
        aggr: Aggregation of the readout.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.0,
        aggr: str = "mean",
    ) -> None:
        super().__init__()
        self.body = GIN(in_channels, hidden_channels, num_layers, dropout=dropout)
        self.readout = RootReadout(aggr)
        self.head = nn.Linear(hidden_channels, out_channels)

    def forward(self, batch: Any) -> Tensor:
        """Logits [graphs, classes] of a PyG batch."""
        h = self.body(batch.x, batch.edge_index)
        pooled = self.readout(h, batch.batch, batch.num_graphs, batch.get("root_mask"))
        logits: Tensor = self.head(pooled)
        return logits


class Split(NamedTuple):
    """Graphs for training, validation and testing."""

    train: list[Data]
    val: list[Data]
    test: list[Data]


def split_graphs(
    graphs: Sequence[Data], seed: int = 0, val: float = 0.1, test: float = 0.1
) -> Split:
    """80 / 10 / 10 by default, drawn from ``seed``."""
    order = torch.randperm(len(graphs), generator=generator("graphs", seed)).tolist()
    a, b = round(len(graphs) * test), round(len(graphs) * val)
    chosen = [graphs[k] for k in order]
    return Split(chosen[a + b :], chosen[a : a + b], chosen[:a])


def load_tu(name: str) -> list[Data]:
    """Graphs of the TU collection (Morris et al., 2020) from the data root; nothing is written.

    Raises:
        DataError: The files are missing.
    """
    raw = locate(f"graph/tu/{name}/raw", hint=f"it holds {name}_A.txt and its siblings")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data, slices, _ = read_tu_data(str(raw), name)
    count = len(slices["y"]) - 1
    graphs = []
    for i in range(count):
        fields = {}
        for key, bounds in slices.items():
            a, b = int(bounds[i]), int(bounds[i + 1])
            fields[key] = data[key][:, a:b] if key == "edge_index" else data[key][a:b]
        graphs.append(Data(**fields))
    return graphs


def random_sample(graphs: Sequence[Data], edges: int, seed: int = 0) -> list[Data]:
    """Training graphs drawn at random, every class in turn, up to ``edges`` edges: the control."""
    rng = generator("sample", seed)
    order = torch.randperm(len(graphs), generator=rng).tolist()
    by_class: dict[int, list[Data]] = {}
    for k in order:
        by_class.setdefault(int(graphs[k].y), []).append(graphs[k])
    chosen, used = [], 0
    for row in range(max(map(len, by_class.values()))):
        for own in by_class.values():
            if row < len(own) and used + own[row].num_edges <= edges:
                chosen.append(own[row])
                used += own[row].num_edges
    return chosen


class _Classification(Distiller):
    def forward(self, batch: Any, step: int) -> Losses:
        return self.objective(step, task=(self.student(batch), batch.y))


def train_classifier(
    train: Sequence[Data] | DistilledDataset,
    val: Sequence[Data],
    *,
    hidden: int = 64,
    layers: int = 2,
    dropout: float = 0.0,
    aggr: str = "mean",
    steps: int = 400,
    batch_size: int = 64,
    lr: float = 0.005,
    seed: int = 0,
    engine: Engine | None = None,
) -> GraphClassifier:
    """Train a GIN on graphs or on a distilled set; the best validation weights are kept.

    Graphs of a distilled set are drawn by their weight, others uniformly. The classifier comes
    back on the CPU.
    """
    graphs = list(train)
    classes = int(max(int(graph.y) for graph in graphs)) + 1
    if isinstance(train, DistilledDataset):
        sampler = WeightedGraphSampler(train, steps * batch_size, seed)
        drawn = torch.tensor(list(sampler)).view(steps, batch_size)
    else:
        rng = generator("draws", seed)
        drawn = torch.randint(len(graphs), (steps, batch_size), generator=rng)
    seed_all("classifier", seed)
    width = graphs[0].x.shape[1]
    model = GraphClassifier(width, hidden, layers, max(2, classes), dropout, aggr)
    whole = Batch.from_data_list([_bare(graph) for graph in val])
    fit(
        _Classification(model, Objective(task=(1.0, F.cross_entropy))),
        lambda step, rank, world: Batch.from_data_list([graphs[k] for k in drawn[step].tolist()]),
        steps=steps,
        lr=lr,
        validation=Validation(lambda m: _score(m, whole), every=20),
        engine=engine,
        seed=seed,
        progress=False,
    )
    return model


@torch.no_grad()
def auc(model_or_logits: Any, labels_or_graphs: Any) -> float:
    """Area under the ROC curve of logits and labels, or of a model on whole graphs.

    With more than two classes the mean of one against the rest, over those that are there. 0.5
    where only one class is there.
    """
    if not isinstance(model_or_logits, Tensor):
        batch = Batch.from_data_list([_bare(graph) for graph in labels_or_graphs])
        return _score(model_or_logits.eval(), batch)
    return roc_auc(model_or_logits, labels_or_graphs)


def _score(model: nn.Module, batch: Any) -> float:
    """`auc` of a model on a batch of whole graphs, where the model is."""
    batch = batch.to(next(model.parameters()).device)
    return auc(model(batch), batch.y)


def _bare(graph: Data) -> Data:
    return Data(x=graph.x, edge_index=graph.edge_index, y=graph.y)
