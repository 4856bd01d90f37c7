"""Images recovered from a trained network with batch norm: SRe2L and CDA."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.condense.data.pool import Pool
from potstill.condense.synthesis.images import SyntheticImages
from potstill.core import ConfigError, Distiller, Losses, Objective, nearest

__all__ = ["Crops", "Recovery", "statistics_distance"]

_CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda u: 0.08 + 0.46 * (1 + math.cos(math.pi * u)),
    "linear": lambda u: 0.08 + 0.92 * (1 - u),
    "step": lambda u: 1.0,
    "none": lambda u: 0.08,
}  # fmt: skip


@dataclass(frozen=True)
class Crops:
    """Random crops, resized, mirrored and moved; large ones first, small ones later.

    A crop has a random share in [m, 1] of the area. With a curriculum m falls from 1 to .08, so
    that outlines come before details; without (``none``, SRe2L) it is .08 from the start;
    ``whole`` takes the whole image.

    Source: Yin and Shen, CDA, TMLR 2024, Eqs. (5) to (8); SRe2L, NeurIPS 2023.

    Args:
        curriculum: How m falls.
        milestone: Share of the budget after which m is .08.
        roll: Largest move in pixels, both ways.
        flip: Mirror half of the views from left to right.

    Raises:
        ConfigError: An unknown curriculum, or a milestone outside (0, 1].

    Example:
        >>> [round(Crops("cosine").least(u), 4) for u in (0, 0.25, 0.5, 0.75, 1)]
        [1.0, 0.8653, 0.54, 0.2147, 0.08]
    """

    curriculum: Literal["cosine", "linear", "step", "none", "whole"] = "cosine"
    milestone: float = 1.0
    roll: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        known = (*_CURVES, "whole")
        if self.curriculum not in known:
            raise ConfigError(
                f"Crops: unknown curriculum {self.curriculum!r}; {nearest(self.curriculum, known)}"
            )
        if not 0 < self.milestone <= 1:
            raise ConfigError(f"Crops: milestone must be in (0, 1], got {self.milestone}")

    def least(self, progress: float) -> float:
        """Smallest share of the area of a crop, m, at a share of the budget."""
        if self.curriculum == "whole":
            return 1.0
        u = progress / self.milestone
        return _CURVES[self.curriculum](u) if u < 1 else 0.08

    def __call__(self, images: Tensor, progress: float) -> Tensor:
        """One random view of all images."""
        height, width = images.shape[-2:]
        if self.curriculum != "whole":
            top, left, tall, wide = _box(height, width, self.least(progress))
            part = images[..., top : top + tall, left : left + wide]
            images = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
        if float(torch.rand(())) < 0.5 and self.flip:
            images = images.flip(3)
        moves = torch.randint(-self.roll, self.roll + 1, (2,)).tolist()
        return torch.roll(images, moves, (2, 3))


def _box(height: int, width: int, least: float) -> tuple[int, int, int, int]:
    """A random box with a share of the area in [least, 1] and sides of ratio 3/4 to 4/3."""
    for _ in range(10):
        share = float(torch.empty(()).uniform_(least, 1))
        ratio = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
        tall = round(math.sqrt(share * height * width / ratio))
        wide = round(math.sqrt(share * height * width * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top = int(torch.randint(height - tall + 1, ()))
            return top, int(torch.randint(width - wide + 1, ())), tall, wide
    return 0, 0, height, width


class Recovery(Distiller):
    """Images that a network classifies as wanted, with the batch statistics that it was trained on.

    ``CE(f(A(x)), y) + r sum_l w_l (|mean_l - running_l|_2 + |var_l - running_l|_2)`` over the
    inputs of all batch norms, the first of them with weight 10. The statistics are those of the
    batch, so which images are recovered together is part of the method: one of each class.

    Source: Yin, Xing and Shen, SRe2L, NeurIPS 2023, Eqs. (5) to (7); weights of the authors' code.

    Terms: ``class`` (logits, labels), ``statistics`` (see `statistics_distance`).

    Args:
        student: The images, of one group.
        network: Trained network with batch norm.
        pool: Says which values images may have.
        crops: The views.
        strength: Weight of the term ``statistics``.
        first: Weight of the first batch norm.

    Raises:
        ConfigError: A network without batch norm that has running statistics, or with another
            number of classes than the pool.
    """

    def __init__(
        self,
        student: SyntheticImages,
        network: nn.Module,
        pool: Pool,
        crops: Crops | None = None,
        *,
        strength: float = 0.05,
        first: float = 10.0,
    ) -> None:
        terms: Any = {"class": (1.0, F.cross_entropy),
                 "statistics": (strength, partial(statistics_distance, first=first))}  # fmt: skip
        super().__init__(student.within(pool), Objective(terms))
        self.norms = batch_norms(network)
        self.network = network.eval().requires_grad_(False)
        outputs = self.network(student.images[:1].detach()).shape[-1]
        if outputs != len(pool.classes):
            raise ConfigError(
                f"Recovery: the teacher must have an output for each of {len(pool.classes)} "
                f"classes of the images, got {outputs}; train it on these images"
            )
        self.crops = crops or Crops()

    def forward(self, batch: Any, step: int) -> Losses:
        """One view of all images; the batch is not used."""
        student: Any = self.student
        student.clamp()
        with _inputs(self.norms) as inputs:
            logits = self.network(self.crops(student.images, self.progress))
        terms = {"class": (logits, student.labels), "statistics": (inputs, self.norms)}
        return self.objective(step, terms)


def batch_norms(network: nn.Module) -> list[Any]:
    """The batch norms of a network, in order.

    Raises:
        ConfigError: There is none with running statistics.
    """
    found = [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]
    if not found:
        raise ConfigError(
            "Recovery: the teacher must have batch norm with running statistics, got "
            f"{type(network).__name__} without; take a ResNet or convnet-3-128-batch"
        )
    return found


def statistics_distance(inputs: list[Tensor], norms: list[Any], *, first: float = 10.0) -> Tensor:
    """Distance between the statistics of a batch and the running ones, over all batch norms.

    Source: Yin, Xing and Shen, SRe2L, NeurIPS 2023, Eq. (6), after DeepInversion, CVPR 2020.

    Args:
        inputs: Input of each batch norm, [images channels height width].
        norms: The batch norms.
        first: Weight of the first one; that of the others is 1.
    """
    total = inputs[0].new_zeros(())
    for number, (x, norm) in enumerate(zip(inputs, norms, strict=True)):
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        distance = (mean - norm.running_mean).norm() + (variance - norm.running_var).norm()
        total = total + (first if number == 0 else 1.0) * distance
    return total


@contextmanager
def _inputs(norms: list[Any]) -> Iterator[list[Tensor]]:
    """What the batch norms get while a network runs."""
    found: list[Tensor] = []
    hooks = [norm.register_forward_pre_hook(lambda _, x: found.append(x[0])) for norm in norms]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
