"""The field of NeRF: frequencies and a deep network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from potstill.core import ConfigError
from potstill.nerf.encodings.frequency import frequencies
from potstill.nerf.fields.base import WIDTH, Field, Head
from potstill.nerf.space import Space

__all__ = ["MLPConfig", "MLPField"]


@dataclass(frozen=True)
class MLPConfig:
    """Size of an mlp field; NeRF's own is depth 8, width 256, skip 4.

    Args:
        depth: Hidden layers.
        width: Width of these layers.
        skip: The layer that gets the encoded point again; 0 for none.
        bands: Frequencies.
        include_pi: Multiply the frequencies by pi.
        hidden: Width of the head.
    """

    depth: int = 4
    width: int = 64
    skip: int = 2
    bands: int = 10
    include_pi: bool = False
    hidden: int = 64

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1 or not 0 <= self.skip < self.depth:
            raise ConfigError(
                "MLPConfig: depth and width must be at least 1 and skip below depth, got "
                f"{self.depth}, {self.width} and {self.skip}"
            )


class MLPField(Field):
    """Frequencies -> depth x width with a skip -> 16 features -> head.

    Source: Mildenhall et al., "NeRF", ECCV 2020, Section 5.1, with the head of `HashField`, so that
    block 2 is interchangeable.
    """

    kind: ClassVar[str] = "mlp"

    def __init__(
        self, config: MLPConfig | None = None, space: Space | None = None, **options: Any
    ) -> None:
        config = config or MLPConfig()
        super().__init__(config, space or Space(), **options)
        encoded = 3 * (1 + 2 * config.bands)
        inputs = [encoded] + [config.width] * (config.depth - 1)
        if config.skip:
            inputs[config.skip] += encoded
        self.layers = nn.ModuleList(nn.Linear(n, config.width) for n in inputs)
        self.net = nn.Linear(config.width, WIDTH)
        self.color = Head(config.hidden)

    def features(self, points: Tensor) -> Tensor:
        """Block 1, [P 16]."""
        x = 2 * self.space.unit(points) - 1
        encoded = h = frequencies(x, self.config.bands, self.config.include_pi)
        for index, layer in enumerate(self.layers):
            if index and index == self.config.skip:
                h = torch.cat([h, encoded], dim=1)
            h = layer(h).relu()
        feature: Tensor = self.net(h)
        return feature

    def rate(self, name: str) -> float:
        """Deep networks want a smaller step than tables."""
        return 0.3
