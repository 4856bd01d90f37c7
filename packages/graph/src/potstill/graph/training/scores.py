"""Scores of nodes by task, what says nothing at all, and the loss of the labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn
from torch_geometric.data import Data

from potstill.core import accuracy

__all__ = ["SCORES", "Score", "baseline", "roc_auc", "score", "task_loss"]


class Score(NamedTuple):
    """How a figure is shown.

    Attributes:
        title: Its name.
        unit: ``"%"`` for shares, else nothing.
        best: ``"max"`` or ``"min"``.
    """

    title: str
    unit: str
    best: Literal["max", "min"]

    @property
    def factor(self) -> float:
        """From the figure to what is shown."""
        return 100.0 if self.unit else 1.0

    @property
    def sign(self) -> float:
        """Larger is better after multiplication with this."""
        return 1.0 if self.best == "max" else -1.0


SCORES = {
    "accuracy": Score("accuracy", "%", "max"),
    "f1": Score("F1", "%", "max"),
    "roc_auc": Score("ROC-AUC", "%", "max"),
    "mae": Score("MAE", "", "min"),
}
"""By metric of a graph. F1 is the mean over classes, and over all labels together; ROC-AUC with
more than two classes or labels is the mean of one against the rest."""


def score(data: Data, z: Tensor, mask: Tensor) -> float:
    """The metric of a graph for the nodes of a mask.

    Args:
        data: A checked graph.
        z: Logits, or values, of all its nodes [N C].
        mask: [N] bool, with at least one node.
    """
    z, y = z.to(data.y.device)[mask], data.y[mask]
    metric = data.get("metric") or "accuracy"
    if metric == "accuracy":
        return accuracy(z, y)
    z, y = z.cpu().float(), y.cpu()
    if metric == "mae":
        scale = data.get("y_scale")
        error = (z - y).abs()
        return float((error if scale is None else error * scale.cpu()).mean())
    if metric == "f1":
        return _f1(z, y)
    return roc_auc(z, y)


def roc_auc(z: Tensor, y: Tensor) -> float:
    """Area under the ROC curve of logits [N C] and classes [N] or labels [N C].

    With two classes that of the second; else the mean of one against the rest, over those that are
    there and are not all. 0.5 where there is nothing to tell apart.
    """
    score, y = z.softmax(1) if y.ndim == 1 else z, y.cpu()
    columns = score.cpu().numpy()
    if y.ndim == 2:
        truth = (y > 0).numpy()
    else:
        truth = F.one_hot(y, max(columns.shape[1], int(y.max()) + 1)).bool().numpy()
    there = range(1, 2) if y.ndim == 1 and columns.shape[1] == 2 else range(columns.shape[1])
    areas = [_area(columns[:, k], truth[:, k]) for k in there if 0 < truth[:, k].sum() < len(truth)]
    return float(np.mean(areas)) if areas else 0.5


def _area(score: NDArray[Any], positive: NDArray[Any]) -> float:
    """The share of pairs of a positive and a negative in the right order; equal ones count half."""
    ones, zeros = positive.sum(), (~positive).sum()
    return float((rankdata(score)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _f1(z: Tensor, y: Tensor) -> float:
    """Harmonic mean of precision and recall: the mean over classes, or of all labels together."""
    if y.ndim == 2:
        said, true = z > 0, y > 0
        return float(2 * (said & true).sum() / (said.sum() + true.sum()).clamp_min(1))
    said, classes = z.argmax(1), y.unique()
    each = [2 * ((said == k) & (y == k)).sum() / ((said == k).sum() + (y == k).sum())
            for k in classes]  # fmt: skip
    return float(torch.stack(each).mean())


def baseline(data: Data, part: str = "test") -> float:
    """What is reached by saying the same of every node: the commonest class, or the median.

    Args:
        data: A checked graph.
        part: ``"test"`` or ``"val"``; validation where there are no test nodes.
    """
    y, seen = data.y, data.train_mask
    if y.is_floating_point():
        own = y[seen]
        z = own.median(0).values if data.task == "values" else own.mean(0).logit()
    else:
        z = F.one_hot(y[seen], data.num_classes).float().mean(0)
    mask = data[f"{part}_mask"] if bool(data[f"{part}_mask"].any()) else data.val_mask
    return score(data, z.expand(len(y), -1), mask)


class Balanced(nn.Module):
    """Cross-entropy in which every class, or the two sides of every label, weigh alike.

    Args:
        y: Labels of the training nodes, [N] or [N K].
        classes: Number of classes.
    """

    weight: Tensor

    def __init__(self, y: Tensor, classes: int) -> None:
        super().__init__()
        if y.ndim == 2:
            share = y.float().mean(0).clamp(1e-3, 1 - 1e-3)
            weight = (1 - share) / share
        else:
            count = y.bincount(minlength=classes).float()
            weight = count.sum() / count.clamp_min(1) / max(1, int((count > 0).sum()))
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Mean over nodes by weight."""
        if y.ndim == 2:
            return F.binary_cross_entropy_with_logits(z, y, pos_weight=self.weight)
        return F.cross_entropy(z, y, self.weight)


def task_loss(data: Data, balanced: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of the labels of a graph; ``balanced`` gives rare classes the weight of others."""
    task = data.get("task")
    if task == "values":
        return F.mse_loss
    if balanced:
        return Balanced(data.y[data.train_mask], data.num_classes)
    return F.binary_cross_entropy_with_logits if task == "labels" else F.cross_entropy
