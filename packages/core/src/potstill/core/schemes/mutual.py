"""Online distillation: students that teach each other while they learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import nn

from potstill.core.errors import ConfigError
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Criterion, Losses, Objective
from potstill.core.vocabulary.schedule import Weight

__all__ = ["MutualDistiller", "mutual"]


class MutualDistiller(Distiller):
    """Peers on the same batch; build it with `mutual`.

    Terms: ``task0, task1, ...`` get ``(z_i, y)``, and ``match0_1`` gets ``(z_0, z_1, y)``: peer 0
    learns from peer 1, whose logits the criterion detaches.
    """

    student: nn.ModuleList

    def forward(self, batch: Any, step: int) -> Losses:
        """Route a batch ``(x, y)``."""
        x, y = batch
        logits = [peer(x) for peer in self.student]
        names = self.objective.at(step)
        tensors: dict[str, tuple[Any, ...]] = {}
        for i, z_i in enumerate(logits):
            tensors[f"task{i}"] = (z_i, y)
            tensors |= {f"match{i}_{j}": (z_i, z_j, y) for j, z_j in enumerate(logits) if j != i}
        return self.objective(step, {name: tensors[name] for name in names})


def mutual(
    peers: Sequence[nn.Module],
    criterion: Criterion,
    *,
    weight: Weight = 1.0,
    task: Criterion = F.cross_entropy,
) -> MutualDistiller:
    """Deep mutual learning: each peer learns from labels and from every other peer.

    Source: Zhang et al., Deep Mutual Learning, CVPR 2018, where the criterion is
    the KL divergence at temperature 1, ``partial(kd, T=1.0)``; BD-KD's is `bdkd`. Its mean over the
    other peers is taken.

    Args:
        peers: At least two students; after `fit` they are ``distiller.student``.
        criterion: Criterion that compares two peers.
        weight: Weight of the mean over the other peers.
        task: Criterion on labels.

    Raises:
        ConfigError: Fewer than two peers.
    """
    if len(peers) < 2:
        raise ConfigError(f"mutual: at least two peers are needed, got {len(peers)}")

    def share(step: int) -> float:
        return (weight(step) if callable(weight) else weight) / (len(peers) - 1)

    each = range(len(peers))
    terms: dict[str, tuple[Weight, Criterion]] = {f"task{i}": (1.0, task) for i in each}
    terms |= {f"match{i}_{j}": (share, criterion) for i in each for j in each if i != j}
    return MutualDistiller(nn.ModuleList(peers), Objective(terms))
