"""The synthetic images: the student of every method of synthesis."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from potstill.condense.data.pool import Pool

__all__ = ["SyntheticImages"]


class SyntheticImages(nn.Module):
    """Images as parameters, class after class; with labels and a learning rate where they train.

    Attributes:
        images: [classes * ipc, channels height width], normalised.
        labels: Class of each.
        logits: Soft labels before their softmax, or None.
        lr: Learning rate of networks that train on the images, or None.

    Args:
        images: Where they start.
        labels: Class of each, in blocks of equal length.
        logits: Where soft labels start.
        lr: Where the learning rate starts.
    """

    labels: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        images: Float[Tensor, "images channels height width"],
        labels: Int[Tensor, " images"],
        *,
        logits: Float[Tensor, "images classes"] | None = None,
        lr: float | None = None,
    ) -> None:
        super().__init__()
        self.images = nn.Parameter(images.clone())
        self.register_buffer("labels", labels.clone())
        self.logits = None if logits is None else nn.Parameter(logits.clone())
        self.lr = None if lr is None else nn.Parameter(torch.tensor(float(lr)))

    @classmethod
    def start(
        cls, pool: Pool, ipc: int, kind: Literal["real", "noise"], rng: torch.Generator
    ) -> SyntheticImages:
        """Random images of each class, or noise.

        Raises:
            ConfigError: A class has fewer images.
        """
        pool.require(ipc, "condense")
        classes = len(pool.classes)
        labels = torch.arange(classes).repeat_interleave(ipc)
        if kind == "noise":
            images = torch.randn(classes * ipc, *pool.shape, generator=rng)
        else:
            images = pool.normalized(random_of_each(pool, ipc, rng))
        return cls(images, labels)

    def within(self, pool: Pool) -> SyntheticImages:
        """These images, which `clamp` keeps in the range that the pixels of a pool can have."""
        mean, deviation = pool.affine
        for name, value in (("low", 0), ("high", 1)):
            self.register_buffer(name, (value - mean) / deviation, persistent=False)
        return self

    @torch.no_grad()
    def clamp(self) -> None:
        """Cut off what no pixel can have; after `within`."""
        self.images.copy_(self.images.clamp(self.low, self.high))

    def forward(self) -> Tensor:
        """The images."""
        return self.images


def random_of_each(pool: Pool, count: int, rng: torch.Generator) -> Int[Tensor, " picks"]:
    """``count`` different rows of each class, class after class, in random order."""
    order = (pool.labels + torch.rand(len(pool), generator=rng, dtype=torch.float64)).argsort()
    begins = pool.counts.cumsum(0) - pool.counts
    return order[begins[:, None] + torch.arange(count)].flatten()
