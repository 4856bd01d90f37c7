"""The field of Plenoxels: densities and harmonics on the vertices of a sparse grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from potstill.core import ConfigError, ShapeError
from potstill.nerf.encodings.harmonics import harmonics
from potstill.nerf.fields.base import Field
from potstill.nerf.space import Space

__all__ = ["GridConfig", "GridField"]


@dataclass(frozen=True)
class GridConfig:
    """Size of a grid field; Plenoxels' is 128 to 512 and degree 3.

    Args:
        resolution: Vertices an axis.
        degree: Bands of the harmonics, 1 to 4.
    """

    resolution: int = 96
    degree: int = 3

    def __post_init__(self) -> None:
        if self.resolution < 2 or self.degree not in (1, 2, 3, 4):
            raise ConfigError(
                "GridConfig: resolution must be at least 2 and degree 1 to 4, got "
                f"{self.resolution} and {self.degree}"
            )


class GridField(Field):
    """Trilinear density and harmonics, stored for the vertices of occupied cells only.

    Source: Fridovich-Keil, Yu et al., "Plenoxels", CVPR 2022, Section 3.1. Block 2 has no
    parameters: ``sigmoid(sum_k Y_k(d) f_k)``.

    Args:
        config: Size of the field.
        space: Region that the field describes.
        cells: Booleans [R R R] of any resolution: where vertices are stored; everywhere when None.
        **options: Options of `Field`.
    """

    kind: ClassVar[str] = "grid"
    has_features: ClassVar[bool] = False

    def __init__(
        self,
        config: GridConfig | None = None,
        space: Space | None = None,
        cells: Tensor | None = None,
        **options: Any,
    ) -> None:
        config = config or GridConfig()
        super().__init__(config, space or Space(), **options)
        n = config.resolution
        mask = torch.ones(n, n, n, dtype=torch.bool) if cells is None else _vertices(cells, n)
        rows = torch.full((n**3,), -1, dtype=torch.int64)
        kept = mask.flatten().nonzero()[:, 0]
        rows[kept] = torch.arange(len(kept))
        # the last row stays zero: vertices that are not stored
        rows[rows < 0] = len(kept)
        self.register_buffer("rows", rows)
        self.width = 1 + 3 * config.degree**2
        self.table = nn.Parameter(torch.zeros(len(kept) + 1, self.width))

    rows: Tensor

    @property
    def is_dense(self) -> bool:
        """Whether every vertex is stored."""
        return len(self.table) > self.config.resolution**3

    def features(self, points: Tensor) -> Tensor:
        """Block 1, [P 1 + 3 degree^2]: raw density and coefficients; 0 outside the cube."""
        n = self.config.resolution
        u = self.space.unit(points)
        inside = ((u >= 0) & (u <= 1)).all(1)
        p = u.clamp(0, 1) * (n - 1)
        cell = p.detach().floor().clamp(max=n - 2)
        f = p - cell  # [P 3]
        near = torch.stack([1 - f, f], dim=-1)
        weights = near[:, 0, :, None, None] * near[:, 1, None, :, None] * near[:, 2, None, None]
        c = cell.long()
        low = (c[:, 0] * n + c[:, 1]) * n + c[:, 2]
        corner = torch.arange(8, device=low.device)
        steps = (corner >> 2) * n * n + (corner >> 1 & 1) * n + (corner & 1)
        rows = self.rows[low[:, None] + steps]
        weights = weights.flatten(1) * inside[:, None] * (rows < len(self.table) - 1)
        return nn.functional.embedding_bag(rows, self.table, per_sample_weights=weights, mode="sum")

    def head(self, feature: Tensor, views: Tensor) -> Tensor:
        """Block 2, [P 3]."""
        basis = harmonics(views, self.config.degree)
        coefficients = feature[:, 1:].reshape(len(feature), 3, basis.shape[1])
        return (coefficients * basis[:, None]).sum(2).sigmoid()

    def differences(self, generator: torch.Generator) -> list[Tensor]:
        """Along the axes, at 4,096 vertices; those that are not stored are zero."""
        n = self.config.resolution
        low = torch.randint(n - 1, (4096, 3), generator=generator).to(self.rows.device)
        steps = torch.tensor([n * n, n, 1], device=low.device)
        here = low @ steps

        def value(vertex: Tensor) -> Tensor:
            nothing = len(self.table) - 1  # the row that stays zero
            return nn.functional.embedding(self.rows[vertex], self.table, padding_idx=nothing)

        return [value(here + step) - value(here) for step in steps]

    @torch.no_grad()
    def refined(self, resolution: int) -> GridField:
        """The same field at another resolution, stored around what is occupied only."""
        config = GridConfig(resolution, self.config.degree)
        cells = self.occupancy.dilated()
        field = GridField(config, self.space, cells, **self.options).to(self.table.device)
        stored = (field.rows < len(field.table) - 1).nonzero()[:, 0]
        n = resolution
        axes = torch.stack([stored // n**2, stored // n % n, stored % n], dim=1)
        for part in torch.arange(len(stored), device=stored.device).split(65536):
            points = self.space.points(axes[part] / (n - 1))
            field.table[field.rows[stored[part]]] = self.features(points)
        field.occupancy.load_state_dict(self.occupancy.state_dict())
        return field


def _vertices(cells: Tensor, resolution: int) -> Tensor:
    """Which vertices touch a cell of the mask."""
    if cells.ndim != 3 or cells.dtype != torch.bool:
        raise ShapeError(
            f"GridField: cells must be booleans [R, R, R], got {list(cells.shape)} {cells.dtype}"
        )
    # nearest cell of each vertex, then the neighbours, since a vertex serves eight cells
    index = (torch.arange(resolution) * (len(cells) / (resolution - 1))).long()
    index = index.clamp(max=len(cells) - 1)
    mask = cells.cpu()[index][:, index][:, :, index].float()[None, None]
    grown = nn.functional.max_pool3d(mask, 3, stride=1, padding=1)
    return grown[0, 0] > 0
