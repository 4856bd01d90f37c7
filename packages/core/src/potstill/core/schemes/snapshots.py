"""A teacher made of the student's own past."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core.errors import ConfigError
from potstill.core.schemes.offline import LogitDistiller
from potstill.core.vocabulary.objective import Objective

__all__ = ["SnapshotDistiller", "Snapshots"]


class Snapshots(nn.Module):
    """The last k snapshots of a model, voting.

    Source: after SD-DARTS (self-distillation of a supernet); k, spacing and vote are yours, since
    the paper's were not available to us. The snapshots are in ``state_dict``, so a resumed run has
    the same teacher.

    Args:
        model: Module to copy; the first snapshot is taken now.
        k: Number of snapshots that are kept.
        every: Steps between them.
        vote: ``"mean"`` of probabilities, or ``"majority"``: the share of snapshots that would
            choose a class. Both as log-probabilities, that is, logits; a class without any vote
            has -inf, and `kd` to it is finite.

    Raises:
        ConfigError: An option out of range.
    """

    taken: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        k: int = 3,
        every: int = 100,
        vote: Literal["mean", "majority"] = "mean",
    ) -> None:
        super().__init__()
        if k < 1 or every < 1 or vote not in ("mean", "majority"):
            raise ConfigError(
                "Snapshots: k >= 1, every >= 1 and vote mean or majority are needed, got "
                f"{(k, every, vote)}"
            )
        self.every, self.vote = every, vote
        slots = [copy.deepcopy(model).eval().requires_grad_(False) for _ in range(k)]
        self.slots = nn.ModuleList(slots)
        self.register_buffer("taken", torch.ones((), dtype=torch.long))

    def train(self, mode: bool = True) -> Snapshots:
        """Do nothing: snapshots stay in eval mode."""
        return self

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take a snapshot where ``step`` is due, over the oldest one."""
        if step == 0 or step % self.every:
            return
        slot = self.slots[int(self.taken) % len(self.slots)]
        slot.load_state_dict(model.state_dict())
        self.taken += 1

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Tensor:
        """Log of the vote, [..., C]."""
        count = min(int(self.taken), len(self.slots))
        logits = torch.stack([slot(*inputs) for slot in list(self.slots)[:count]])
        if self.vote == "mean":
            return torch.log_softmax(logits, -1).logsumexp(0) - torch.tensor(float(count)).log()
        votes = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits).mean(0)
        return votes.log()


class SnapshotDistiller(LogitDistiller):
    """`LogitDistiller` whose teacher is the student's past.

    Args:
        student: Module to train.
        objective: Terms as in `LogitDistiller`.
        k: As in `Snapshots`.
        every: As in `Snapshots`.
        vote: As in `Snapshots`.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        *,
        k: int = 3,
        every: int = 100,
        vote: Literal["mean", "majority"] = "mean",
    ) -> None:
        super().__init__(student, objective)
        self.snapshots = Snapshots(student, k=k, every=every, vote=vote)

    def reference(self, x: Any, step: int) -> Tensor:
        """The vote, after taking a snapshot where one is due."""
        self.snapshots.update(self.student, step)
        return self.snapshots(x)
