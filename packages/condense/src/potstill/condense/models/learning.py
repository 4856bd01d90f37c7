"""Training a network on labelled images: real ones, or those that were condensed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.condense.data.pool import Pool
from potstill.condense.data.siamese import Siamese
from potstill.core import Batches, Criterion, Distiller, Losses, Objective
from potstill.core.criteria import kd
from potstill.core.engine import Shard

__all__ = ["Learner", "Samples", "classify", "drops", "soft_cross_entropy"]


class Samples(Batches):
    """Random batches (images, labels, logits) of images in memory; logits may be empty.

    Args:
        images: A pool, or normalised images.
        labels: Class of each image.
        batch_size: Images per process and step; fewer where there are fewer images.
        logits: Soft labels.
        drop_last: Leave out the incomplete last batch. Several processes need it.
    """

    def __init__(
        self,
        images: Pool | Tensor,
        labels: Int[Tensor, " images"],
        batch_size: int,
        logits: Float[Tensor, "images classes"] | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(range(len(labels)), min(batch_size, len(labels)), drop_last=drop_last)
        self.images, self.labels, self.logits = images, labels, logits

    def stream(self, start: int, shard: Shard) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches from step ``start`` on, without end."""
        step = start
        while True:
            rows = torch.tensor(self.indices(step, shard))
            pool = isinstance(self.images, Pool)
            images = self.images.normalized(rows) if pool else self.images[rows]  # type: ignore
            yield images, self.labels[rows], self.logits[rows] if self.logits is not None else rows
            step += 1

    def fingerprint(self) -> str:
        """Digests of images, labels and soft labels."""
        from potstill.core.engine import sketch

        what = self.images.digest() if isinstance(self.images, Pool) else self.images
        return f"{len(self.labels)} images {sketch(what, self.labels, self.logits)}"


def soft_cross_entropy(z: Float[Tensor, "images classes"], target: Tensor) -> Tensor:
    """``-sum softmax(target) log softmax(z)``, the mean over images."""
    return -(target.softmax(1) * z.log_softmax(1)).sum(1).mean()


def objective_of(labels: str, temperature: float = 1.0) -> Objective:
    """The term of a `Learner` for hard labels, soft labels, or those of a teacher."""
    terms: Mapping[str, Criterion] = {
        "hard": F.cross_entropy, "soft": soft_cross_entropy, "teacher": partial(kd, T=temperature),
    }  # fmt: skip
    return Objective({labels: (1.0, terms[labels])})


class Learner(Distiller):
    """Train a network on augmented images.

    Term: ``hard`` (logits, labels), ``soft`` (logits, soft labels) or ``teacher`` (logits, the
    teacher's logits for the same augmented image), whichever the objective has.

    Args:
        network: The network.
        augment: The augmentation, drawn for each image; none by default.
        objective: One term of those.
        teacher: Network that labels every view anew.
    """

    def __init__(
        self,
        network: nn.Module,
        augment: Siamese | None = None,
        objective: Objective | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(network, objective or objective_of("hard"), teacher)
        self.augment = augment or Siamese(())

    def forward(self, batch: Any, step: int) -> Losses:
        """Route a batch (images, labels, soft labels)."""
        images, labels, soft = batch
        size = images.shape[-2], images.shape[-1]
        views = self.augment(images, self.augment.draw(len(images), size=size))
        target = {"hard": labels, "soft": soft}
        (name,) = self.objective.names
        wanted = self.teacher(views) if name == "teacher" and self.teacher else target[name]
        return self.objective(step, {name: (self.student(views), wanted)})


def drops(progress: float) -> float:
    """Factor of the learning rate: a tenth after half of the budget, the protocol of the field."""
    return 1.0 if progress < 0.5 else 0.1


@torch.no_grad()
def classify(network: nn.Module, pool: Pool, batch: int = 512) -> Float[Tensor, "images classes"]:
    """Logits of all images, in eval mode."""
    network.eval()
    device = next(network.parameters()).device
    parts = torch.arange(len(pool)).split(batch)
    return torch.cat([network(pool.normalized(rows).to(device)).cpu() for rows in parts])
