"""A field made of fields: their features are added, one head colours them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from potstill.core import ConfigError
from potstill.nerf.fields.base import Field, Head
from potstill.nerf.space import Space

__all__ = ["CompositeConfig", "CompositeField"]


@dataclass(frozen=True)
class CompositeConfig:
    """Which kinds are added up.

    Args:
        kinds: Kinds with features, e.g. ("hash", "mlp").
        hidden: Width of the head.
    """

    kinds: tuple[str, ...] = ("hash", "vm")
    hidden: int = 64

    def __post_init__(self) -> None:
        if len(self.kinds) < 1:
            raise ConfigError("CompositeConfig: kinds must name at least one kind, got none")


class CompositeField(Field):
    """``head(sum_k features_k(x), d)``.

    Since block 1 of every kind with features yields the same 16 numbers, fields can be added
    there: a coarse mlp and a fine hash grid, or a scene and an edit of it.

    Args:
        config: Kinds of ``parts``.
        space: Region that the field describes.
        parts: Fields whose features are added; their heads are not used.
        **options: Options of `Field`.

    Raises:
        ConfigError: A part has no features of that meaning, or another space.
    """

    kind: ClassVar[str] = "composite"

    def __init__(
        self,
        config: CompositeConfig,
        space: Space,
        parts: Sequence[Field],
        **options: Any,
    ) -> None:
        super().__init__(config, space, **options)
        for part in parts:
            if not part.has_features or part.space != space:
                raise ConfigError(
                    f"CompositeField: parts must have features and the same space, got a "
                    f"{part.kind} field in {part.space}"
                )
        self.parts = nn.ModuleList(parts)
        self.color = Head(config.hidden)
        for part in parts:  # their own heads and grids would be dead weight
            del part.color, part.occupancy

    def features(self, points: Tensor) -> Tensor:
        """Block 1, [P 16]."""
        total: Tensor = sum(part.features(points) for part in self.parts)  # type: ignore[assignment, operator]
        return total

    def rate(self, name: str) -> float:
        """As the part says that owns the parameter."""
        if name.startswith("parts."):
            number, _, rest = name.removeprefix("parts.").partition(".")
            part: Any = self.parts[int(number)]
            return float(part.rate(rest))
        return 1.0

    def differences(self, generator: torch.Generator) -> list[Tensor]:
        """Those of all parts."""
        parts: Any = self.parts
        return [each for part in parts for each in part.differences(generator)]
