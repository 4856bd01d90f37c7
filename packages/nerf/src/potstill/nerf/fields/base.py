"""What every field is: block 1 maps points to features, block 2 to density and colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import ConfigError, ShapeError, generator
from potstill.nerf.encodings.harmonics import harmonics
from potstill.nerf.render.occupancy import Occupancy
from potstill.nerf.space import Space

__all__ = ["WIDTH", "Activation", "Field", "FieldOutput", "Head", "mlp"]

WIDTH = 16  # of the feature vector: raw density, and 15 numbers for the head


class FieldOutput(NamedTuple):
    """What a field says of points.

    Attributes:
        feature: Output of block 1, [P W].
        raw: Clamped logarithm of the density, [P].
        rgb: Colour in [0, 1], [P 3].
    """

    feature: Tensor
    raw: Tensor
    rgb: Tensor


@dataclass(frozen=True)
class Activation:
    """Density from the first feature: ``exp(clamp(feature + shift, low, high))``.

    Args:
        shift: Added first; a fresh field then is nearly transparent.
        low: Lower clamp. PVD's is -2, at which empty space keeps a density of 0.135; -100 lets
            a region be erased.
        high: Upper clamp.
    """

    shift: float = -1.0
    low: float = -8.0
    high: float = 7.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"Activation: low must be below high, got {self.low}, {self.high}")

    def raw(self, feature: Tensor) -> Tensor:
        """The clamped logarithm of the density: what losses act on."""
        return (feature + self.shift).clamp(self.low, self.high)


class Field(nn.Module):
    """A radiance field: block 1 `features`, block 2 `head`, an occupancy grid and a space.

    Args:
        config: Size of the field, the dataclass of its kind.
        space: Region that the field describes.
        occupancy: Cells an axis of the occupancy grid.
        activation: Density of the first feature.
        backend: Backend of the encodings.
    """

    kind: ClassVar[str]
    has_features: ClassVar[bool] = True
    """Whether the output of block 1 means the same as that of other kinds."""
    color: nn.Module

    def __init__(
        self,
        config: Any,
        space: Space,
        occupancy: int = 64,
        activation: Activation | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.config, self.space, self.backend = config, space, backend
        self.activation = activation or Activation()
        self.occupancy = Occupancy(occupancy)

    @property
    def options(self) -> dict[str, Any]:
        """What makes a field like this one, beside configuration and space."""
        return {
            "occupancy": self.occupancy.size,
            "activation": self.activation,
            "backend": self.backend,
        }

    def features(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points width"]:
        """Block 1: features of points in marching coordinates; the first is the density's."""
        raise NotImplementedError

    def head(
        self, feature: Float[Tensor, "points width"], views: Float[Tensor, "points 3"]
    ) -> Float[Tensor, "points 3"]:
        """Block 2: colour of features seen along unit directions."""
        rgb: Tensor = self.color(feature, views)
        return rgb

    def forward(self, points: Tensor, views: Tensor) -> FieldOutput:
        """Feature, clamped log density and colour of points seen along directions."""
        if points.shape != views.shape:
            raise ShapeError(
                f"{type(self).__name__}: views must be {list(points.shape)} like points, got "
                f"{list(views.shape)}"
            )
        feature = self.features(points)
        return FieldOutput(feature, self.activation.raw(feature[:, 0]), self.head(feature, views))

    def density(self, points: Tensor) -> Float[Tensor, " points"]:
        """Density of points in marching coordinates, one over their unit of length."""
        return self.activation.raw(self.features(points)[:, 0]).exp()

    def query(self, points: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """Density, and colour on demand, for the renderer."""
        feature = self.features(points)
        sigma = self.activation.raw(feature[:, 0]).exp()
        return sigma, lambda chosen, views: self.head(feature[chosen], views)

    def refresh(self, generator: torch.Generator, everywhere: bool = False) -> None:
        """Update the occupancy grid from the density."""
        space = self.space
        edges = space.edges()

        def depth(unit: Tensor) -> Tensor:
            points = space.points(unit)
            step = float(edges[1] - edges[0])
            if space.kind == "contracted":  # intervals grow with the distance from the camera
                step = points.norm(dim=1) * float(edges[1] / edges[0] - 1) + step
            return self.density(points) * step

        self.occupancy.update(depth, generator, everywhere)

    def follow(self, step: int) -> None:
        """Keep the occupancy grid up with training: every 16th step, all of it up to the 128th."""
        if step % 16 == 0 and torch.is_grad_enabled():
            self.refresh(generator("occupancy", step), everywhere=step < 128)

    def rate(self, name: str) -> float:
        """Factor of the learning rate for a parameter, by name."""
        return 1.0

    def differences(self, generator: torch.Generator) -> list[Tensor]:
        """Differences of neighbouring values, for a field whose values lie on a grid.

        Args:
            generator: On the CPU; draws which, where there are too many.

        Raises:
            ConfigError: Values of this kind have no neighbours.
        """
        raise ConfigError(
            f"{type(self).__name__}.differences: the kind must be vm, cp or grid to have "
            f"neighbours, got {self.kind}; train it without variation"
        )


class Head(nn.Module):
    """Block 2 of every kind with features: harmonics of the direction and 15 features to colour.

    Source: Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022, Section 5.4.

    Args:
        hidden: Width of the two hidden layers.
    """

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.layers = mlp(16 + WIDTH - 1, hidden, 3, depth=2)

    def forward(self, feature: Tensor, views: Tensor) -> Tensor:
        """Colour in [0, 1], [P 3]."""
        rgb: Tensor = self.layers(torch.cat([harmonics(views), feature[:, 1:]], dim=1))
        return rgb.sigmoid()


def mlp(inputs: int, hidden: int, outputs: int, depth: int) -> nn.Sequential:
    """``depth`` hidden layers with ReLU and an output layer, all without bias."""
    widths = [inputs] + [hidden] * depth
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    layers.append(nn.Linear(hidden, outputs, bias=False))
    for layer in layers[::2]:
        # torch's own start shrinks a signal to a fifteenth over three layers: colours come late
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
    return nn.Sequential(*layers)
