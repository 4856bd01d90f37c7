"""The fields of TensoRF: sums of products of planes and lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, grid_sample

from potstill.core import ConfigError
from potstill.nerf.fields.base import WIDTH, Field, Head
from potstill.nerf.space import Space

__all__ = ["CPConfig", "CPField", "VMConfig", "VMField"]

_PLANES = ((0, 1), (0, 2), (1, 2))
_LINES = (2, 1, 0)


@dataclass(frozen=True)
class _Size:
    """Size of a factored field.

    Attributes:
        resolution: Samples along planes and lines.
        density: Components of the density; of vm, those of an axis.
        color: Components of the features; of vm, those of an axis.
        hidden: Width of the head.
    """

    resolution: int = 128
    density: int = 48
    color: int = 96
    hidden: int = 64

    def __post_init__(self) -> None:
        if self.resolution < 2 or self.density < 1 or self.color < 1:
            raise ConfigError(
                f"{type(self).__name__}: resolution must be at least 2, density and color at least "
                f"1, got {self.resolution}, {self.density} and {self.color}"
            )


@dataclass(frozen=True)
class VMConfig(_Size):
    """Size of a vm field; TensoRF's is 300, 16 and 48."""

    density: int = 8
    color: int = 24


@dataclass(frozen=True)
class CPConfig(_Size):
    """Size of a cp field; TensoRF's is 500, 96 and 288."""


class _Factored(Field):
    """Density is a sum of components, features a linear map of them."""

    config: Any
    basis: nn.Linear
    color: Head

    def components(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Components of density [P A] and features [P B] at points of [-1, 1]^3."""
        raise NotImplementedError

    def features(self, points: Tensor) -> Tensor:
        """Block 1, [P 16]; 0 outside the cube."""
        density, color = self.components(2 * self.space.unit(points) - 1)
        return torch.cat([density.sum(1, keepdim=True), self.basis(color)], dim=1)

    def rate(self, name: str) -> float:
        """Factors learn at the full rate, the networks on top at a tenth."""
        return 0.1 if "color." in name or "basis." in name else 1.0


class VMField(_Factored):
    """Vector-matrix decomposition: ``sum over axes and r of M_r(plane) v_r(line)``.

    Source: Chen et al., "TensoRF", ECCV 2022, Eq. (4). Planes XY, XZ, YZ with lines Z, Y, X;
    linear interpolation with the outermost samples on the faces of the cube.
    """

    kind: ClassVar[str] = "vm"

    def __init__(
        self, config: VMConfig | None = None, space: Space | None = None, **options: Any
    ) -> None:
        config = config or VMConfig()
        super().__init__(config, space or Space(), **options)
        n, r = config.density + config.color, config.resolution
        self.planes = nn.Parameter(0.1 * torch.randn(3, n, r, r))
        self.lines = nn.Parameter(0.1 * torch.randn(3, n, r, 1))
        self.basis = nn.Linear(3 * config.color, WIDTH - 1, bias=False)
        self.color = Head(config.hidden)

    def components(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Products of planes and lines."""
        flat = torch.stack([x[:, list(axes)] for axes in _PLANES])[:, :, None]  # [3 P 1 2]
        along = x.T[list(_LINES)]
        along = torch.stack([torch.zeros_like(along), along], dim=-1)[:, :, None]
        product = _sample(self.planes, flat) * _sample(self.lines, along)  # [3 n P]
        a = self.config.density
        return product[:, :a].flatten(0, 1).T, product[:, a:].flatten(0, 1).T

    def differences(self, generator: torch.Generator) -> list[Tensor]:
        """Along both axes of the planes and along the lines."""
        planes = [self.planes.diff(dim=2), self.planes.diff(dim=3)]
        return [*planes, self.lines.diff(dim=2)]


class CPField(_Factored):
    """Canonical polyadic decomposition: ``sum over r of x_r(x) y_r(y) z_r(z)``.

    Source: Chen et al., "TensoRF", ECCV 2022, Eq. (2).
    """

    kind: ClassVar[str] = "cp"

    def __init__(
        self, config: CPConfig | None = None, space: Space | None = None, **options: Any
    ) -> None:
        config = config or CPConfig()
        super().__init__(config, space or Space(), **options)
        n = config.density + config.color
        # a product of three factors: 0.1 each would be 0.001 and learn nothing for long
        self.lines = nn.Parameter(0.2 * torch.randn(3, n, config.resolution, 1))
        self.basis = nn.Linear(config.color, WIDTH - 1, bias=False)
        self.color = Head(config.hidden)

    def components(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Products of three lines."""
        a, b, c = _along(self.lines[..., 0], x)
        product = a * b * c  # [P n]; torch's prod has a backward that looks for zeros
        return product[:, : self.config.density], product[:, self.config.density :]

    def differences(self, generator: torch.Generator) -> list[Tensor]:
        """Along the lines."""
        return [self.lines.diff(dim=2)]


def _sample(values: Tensor, places: Tensor) -> Tensor:
    """Interpolate [3 n H W] at [3 P 1 2]: [3 n P]."""
    return grid_sample(values, places, align_corners=True, padding_mode="zeros")[..., 0]


def _along(lines: Tensor, x: Tensor) -> Tensor:
    """Interpolate lines [3 n R] at their coordinate of x [P 3]: [3 P n]; 0 outside.

    Two rows of a table a point and axis: a third of the time of ``grid_sample`` on images that
    are one pixel wide.
    """
    axes, count, size = lines.shape
    inside = (x.abs() <= 1).T  # [3 P]
    place = (x.T.clamp(-1, 1) + 1) * (0.5 * (size - 1))
    row = place.detach().floor().clamp(max=size - 2)
    share = place - row
    first = row.long() + torch.arange(axes, device=x.device)[:, None] * size
    weights = torch.stack([1 - share, share], dim=-1) * inside[..., None]
    values: Tensor = embedding_bag(
        torch.stack([first, first + 1], dim=-1).flatten(0, 1),
        lines.transpose(1, 2).reshape(axes * size, count),
        per_sample_weights=weights.flatten(0, 1),
        mode="sum",
    )
    return values.reshape(axes, len(x), count)
