"""The occupancy grid: which cells of the unit cube are worth sampling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from potstill.core import ConfigError, DataError

__all__ = ["Occupancy"]


class Occupancy(nn.Module):
    """Booleans over cells of the unit cube, from a decaying maximum of the optical depth.

    Source: Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022, Appendix E. The
    buffers are named and laid out like those of nerfacc's ``OccGridEstimator`` with one level:
    ``resolution``, ``aabbs``, ``occs``, ``binaries``.

    Args:
        resolution: Cells an axis, R.
        threshold: Optical depth of one step, from which on a cell counts as occupied; the mean
            over cells where that is less.
        decay: Factor of the maximum at each update.

    Example:
        >>> occupancy = Occupancy(resolution=8)
        >>> occupancy.share()
        1.0
    """

    def __init__(self, resolution: int = 64, threshold: float = 0.01, decay: float = 0.95) -> None:
        super().__init__()
        if resolution < 1 or not 0 < decay < 1 or threshold <= 0:
            raise ConfigError(
                "Occupancy: resolution must be at least 1, decay in (0, 1) and threshold positive, "
                f"got {resolution}, {decay} and {threshold}"
            )
        self.size, self.threshold, self.decay = resolution, threshold, decay
        self.register_buffer("resolution", torch.tensor([resolution] * 3))
        self.register_buffer("aabbs", torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]))
        self.register_buffer("occs", torch.zeros(resolution**3))
        self.register_buffer("binaries", torch.ones([1] + [resolution] * 3, dtype=torch.bool))

    occs: Tensor
    binaries: Tensor

    def share(self) -> float:
        """Which part of the cells is occupied."""
        return float(self.binaries.float().mean())

    def occupied(self, unit: Tensor) -> Tensor:
        """Whether points [P 3] of the unit cube are in occupied cells."""
        cell = (unit.clamp(0, 1) * self.size).long().clamp(max=self.size - 1)
        return self.binaries[0][cell[:, 0], cell[:, 1], cell[:, 2]]

    @torch.no_grad()
    def update(
        self,
        depth: Callable[[Tensor], Tensor],
        generator: torch.Generator,
        everywhere: bool = False,
        chunk: int = 65536,
    ) -> None:
        """Refresh the maxima of some cells and decide anew which are occupied.

        Half of the cells that are looked at are drawn uniformly and half among the occupied ones,
        a quarter of all cells each; every cell is looked at ``everywhere``. An empty result is
        taken back: a field that is nowhere cannot learn.

        Args:
            depth: Optical depth of one marching step at points [P 3] of the unit cube.
            generator: On the CPU; draws the cells and the points in them.
            everywhere: Look at all cells.
            chunk: Points at once.
        """
        cells = torch.arange(self.size**3)
        if not everywhere:
            quarter = len(cells) // 4
            uniform = torch.randint(len(cells), (quarter,), generator=generator)
            taken = self.binaries.flatten().cpu().nonzero()[:, 0]
            chosen = torch.randint(max(len(taken), 1), (quarter,), generator=generator)
            # a cell once: it is written to by index
            cells = torch.cat([uniform, taken[chosen] if len(taken) else uniform]).unique()
        axes = torch.stack(
            [cells // self.size**2, cells // self.size % self.size, cells % self.size], dim=1
        )
        points = (axes + torch.rand(axes.shape, generator=generator)) / self.size
        points, cells = points.to(self.occs.device), cells.to(self.occs.device)
        values = torch.cat([depth(part) for part in points.split(chunk)])
        self.occs[cells] = torch.maximum(self.occs[cells] * self.decay, values.to(self.occs))
        level = torch.clamp(self.occs.mean(), max=self.threshold)
        binaries = (self.occs > level).reshape(self.binaries.shape)
        self.binaries.copy_(binaries if bool(binaries.any()) else torch.ones_like(binaries))

    def dilated(self, cells: int = 1) -> Tensor:
        """Occupied cells and their neighbours within ``cells``: booleans [R R R]."""
        grown = torch.nn.functional.max_pool3d(
            self.binaries[None].float(), 2 * cells + 1, stride=1, padding=cells
        )
        return grown[0, 0] > 0

    def check(self, what: str) -> None:
        """Refuse an empty grid.

        Raises:
            DataError: No cell is occupied.
        """
        if not bool(self.binaries.any()):
            raise DataError(
                f"{what}: the occupancy grid must have occupied cells, got none; train longer"
            )
