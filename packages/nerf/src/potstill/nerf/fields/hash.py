"""The field of Instant-NGP: a hash grid and a small network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from potstill.nerf.backends.levels import Levels
from potstill.nerf.encodings.hashgrid import HashGrid
from potstill.nerf.fields.base import WIDTH, Field, Head, mlp
from potstill.nerf.space import Space

__all__ = ["HashConfig", "HashField"]


@dataclass(frozen=True)
class HashConfig:
    """Size of a hash field.

    Args:
        levels: Number of levels.
        features: Numbers a row.
        log2_rows: Rows of a level, at most 2 to this.
        base: Coarsest resolution.
        finest: Finest resolution.
        hidden: Width of the networks.
    """

    levels: int = 12
    features: int = 2
    log2_rows: int = 15
    base: int = 16
    finest: int = 512
    hidden: int = 64


class HashField(Field):
    """Hash grid -> 64 -> 16 features -> head.

    Source: Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022.
    """

    kind: ClassVar[str] = "hash"

    def __init__(
        self, config: HashConfig | None = None, space: Space | None = None, **options: Any
    ) -> None:
        config = config or HashConfig()
        super().__init__(config, space or Space(), **options)
        levels = Levels.geometric(
            config.levels, config.features, config.log2_rows, config.base, config.finest
        )
        self.grid = HashGrid(levels, self.backend)
        self.net = mlp(levels.width, config.hidden, WIDTH, depth=1)
        self.color = Head(config.hidden)

    def features(self, points: Tensor) -> Tensor:
        """Block 1, [P 16]."""
        feature: Tensor = self.net(self.grid(self.space.unit(points)))
        return feature
