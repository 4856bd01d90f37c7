"""Small networks for the commands and for tests; bring your own to the functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import ConfigError, Pretrained

__all__ = ["Network"]


class Network(nn.Module, Pretrained):
    """A small classifier of images in [0, 1] with a body, a vector of features and a head.

    Args:
        shape: Channels, height and width of an image.
        classes: Number of classes.
        widths: Units or channels of each layer; convolutions after the first have stride 2.
        kind: Linear layers on all pixels, or 3 x 3 convolutions.

    Raises:
        ConfigError: No layer.

    Example:
        >>> import torch
        >>> Network((1, 8, 8), 10, (12, 6), "cnn")(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        widths: tuple[int, ...] = (96, 96),
        kind: Literal["mlp", "cnn"] = "mlp",
    ) -> None:
        super().__init__()
        if not widths or kind not in ("mlp", "cnn"):
            raise ConfigError(
                f"Network: at least one width and kind mlp or cnn are needed, got {widths}, {kind}"
            )
        self.first: nn.Module
        self.rest: nn.Module
        if kind == "mlp":
            pixels = shape[0] * shape[1] * shape[2]
            sizes: Sequence[int] = (pixels, *widths)
            layers = [
                nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)
            ]
            self.first = nn.Sequential(nn.Flatten(), layers[0])
            self.pool: nn.Module = nn.Identity()
        else:
            sizes = (shape[0], *widths)
            layers = [
                nn.Sequential(nn.Conv2d(a, b, 3, 2 if n else 1, 1), nn.ReLU())
                for n, (a, b) in enumerate(itertools.pairwise(sizes))
            ]
            self.first = layers[0]
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.rest = nn.Sequential(*layers[1:])
        self.head = nn.Linear(widths[-1], classes)

    def forward(
        self, x: Float[Tensor, "items channels height width"]
    ) -> Float[Tensor, "items classes"]:
        """Logits."""
        logits: Tensor = self.head(self.pool(self.rest(self.first(x))))
        return logits
