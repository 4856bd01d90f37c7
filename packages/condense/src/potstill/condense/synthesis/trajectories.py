"""Synthetic images on which a network moves as experts did: DATM, and MTT with hard labels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from potstill.condense.data.siamese import Draw, Siamese
from potstill.condense.models.learning import soft_cross_entropy
from potstill.condense.synthesis.images import SyntheticImages
from potstill.condense.synthesis.rollout import rollout, run_with
from potstill.core import ConfigError, Distiller, Losses, Objective

__all__ = ["TrajectoryMatching", "matching_optimizer", "normalized_distance"]


class TrajectoryMatching(Distiller):
    """Train from an expert's weights on the synthetic images, and end where the expert went.

    ``|theta_N - theta*|^2 / |theta_0 - theta*|^2`` after N steps of gradient descent on batches of
    augmented synthetic images, with soft labels and a learning rate that train too.

    Source: Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory
    Matching (DATM), ICLR 2024, Eqs. (1) to (4); with hard labels Cazenavette et al., MTT,
    CVPR 2022.

    Term: ``trajectory`` (weights reached, weights of the expert, weights at the start).

    Args:
        student: The synthetic images with their learning rate; soft labels where they have logits.
        network: The network of the experts.
        augment: The augmentation, drawn for each image and step.
        steps: Inner steps N.
        batch: Images of an inner step.
        threshold: Distance above which the step changes nothing: its start was a bad one.
        exact: Whole gradient; else that of TESLA, in memory that does not grow with the steps.

    Raises:
        ConfigError: Images without a learning rate, or fewer than one step.
    """

    def __init__(
        self,
        student: SyntheticImages,
        network: nn.Module,
        augment: Siamese | None = None,
        *,
        steps: int = 80,
        batch: int = 256,
        threshold: float = float("inf"),
        exact: bool = True,
    ) -> None:
        if student.lr is None or steps < 1 or batch < 1:
            raise ConfigError(
                "TrajectoryMatching: the student must have a learning rate, and steps and batch "
                f"must be at least 1, got {student.lr}, {steps} and {batch}"
            )
        criterion = partial(normalized_distance, threshold=threshold)
        super().__init__(student, Objective(trajectory=(1.0, criterion)))
        self.network = network.requires_grad_(False)
        self.augment = augment or Siamese()
        self.steps, self.batch, self.exact = steps, batch, exact

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> Losses:
        """Route a pair (start, target) of weights."""
        start, target = batch
        student: Any = self.student
        rows, draws = self._draws(student.images)

        def loss(theta: Tensor, inner: int, images: Tensor, logits: Tensor | None) -> Tensor:
            chosen = rows[inner]
            views = self.augment(images[chosen], draws[inner])
            found = run_with(self.network, theta, views)
            if logits is None:
                return F.cross_entropy(found, student.labels[chosen])
            return soft_cross_entropy(found, logits[chosen])

        reached = rollout(
            loss, start, student.images, student.logits, student.lr, self.steps, exact=self.exact
        )
        return self.objective(step, trajectory=(reached, target, start))

    def _draws(self, images: Tensor) -> tuple[list[Tensor], list[Draw]]:
        """Rows and augmentation of every inner step, in passes over all images."""
        size = images.shape[-2], images.shape[-1]
        rows: list[Tensor] = []
        while len(rows) < self.steps:
            order = torch.randperm(len(images), device="cpu").to(images.device)
            rows += order.split(min(self.batch, len(images)))
        rows = rows[: self.steps]
        return rows, [self.augment.draw(len(each), size=size) for each in rows]


def normalized_distance(
    reached: Float[Tensor, " weights"],
    target: Float[Tensor, " weights"],
    start: Float[Tensor, " weights"],
    *,
    threshold: float = float("inf"),
) -> Tensor:
    """``|reached - target|^2 / |start - target|^2``; without a gradient above the threshold.

    Source: Cazenavette et al., CVPR 2022, Eq. (2).
    """
    value = (reached - target).square().sum() / (start - target).square().sum()
    return torch.where(value.detach() <= threshold, value, value.detach())


class _Patient(torch.optim.SGD):
    """SGD that leaves everything, momentum too, as it is where all gradients are exactly zero."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        slopes = [p.grad for group in self.param_groups for p in group["params"]]
        if any(bool((slope != 0).any()) for slope in slopes if slope is not None):
            super().step(closure)


def matching_optimizer(
    named: list[tuple[str, nn.Parameter]], lr: float, *, labels: float = 0.0, rate: float = 0.0,
    momentum: float = 0.5,
) -> torch.optim.Optimizer:  # fmt: skip
    """SGD with a learning rate each for the images, the soft labels and the learning rate.

    A step that is over the threshold of `TrajectoryMatching` changes nothing.

    Source: the authors' code of MTT and DATM: momentum 0.5 for images and rate, 0.9 for labels.

    Args:
        named: Names and parameters of `SyntheticImages`.
        lr: Learning rate of the images.
        labels: Learning rate of the soft labels.
        rate: Learning rate of the learning rate.
        momentum: Momentum of images and rate.
    """
    of = {"images": (lr, momentum), "logits": (labels, 0.9), "lr": (rate, momentum)}
    groups = []
    for name, parameter in named:
        own, weight = of[name.rpartition(".")[2]]
        groups.append({"params": [parameter], "lr": own, "momentum": weight})
    return _Patient(groups, lr=lr)
