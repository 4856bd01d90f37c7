"""Editing: a field without a box, or with nothing but it, as the teacher of a conversion."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from potstill.core import ConfigError, DataError
from potstill.nerf.fields.base import Field

__all__ = ["EditedField"]

_GONE = -200.0  # below every clamp


class EditedField(Field):
    """A teacher that has lost a region; converting it makes the edit a field of its own.

    Source: Fang et al., "One is All", AAAI 2023: an explicit field is easy to edit, and its
    student of any kind inherits the edit. The lower clamp of the log density becomes -100, so that
    nothing is left there; cells that hold nothing any more leave the occupancy grid.

    Args:
        field: A trained field; it is not changed.
        low: Low corner of the box, in the coordinates of the scene.
        high: High corner.
        mode: "erase" takes what is in the box, "keep" what is not.

    Raises:
        ConfigError: An empty box, or another mode.
        DataError: Nothing would be left, or nothing would go.
    """

    def __init__(
        self,
        field: Field,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
        mode: Literal["erase", "keep"] = "erase",
    ) -> None:
        if mode not in ("erase", "keep"):
            raise ConfigError(f"EditedField: mode must be erase or keep, got {mode!r}")
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise ConfigError(f"EditedField: low must be below high, got {low} and {high}")
        size = field.occupancy.size
        super().__init__(
            field.config, field.space, size, replace(field.activation, low=-100.0), field.backend
        )
        self.kind = field.kind  # type: ignore[misc]
        self.has_features = field.has_features  # type: ignore[misc]
        self.field, self.low, self.high, self.mode = field, low, high, mode
        if hasattr(field, "color"):
            self.color = field.color
        self.occupancy.load_state_dict(field.occupancy.state_dict())
        self.occupancy.to(field.occupancy.occs.device)
        self._clear_cells()

    def erased(self, points: Tensor) -> Tensor:
        """Whether points in marching coordinates [P 3] are gone, [P]."""
        world = self.space.world(points)
        low, high = world.new_tensor(self.low), world.new_tensor(self.high)
        inside = ((world >= low) & (world <= high)).all(1)
        return inside if self.mode == "erase" else ~inside

    def features(self, points: Tensor) -> Tensor:
        """Block 1 of the field, with hardly any density where it is erased."""
        feature = self.field.features(points)
        density = feature[:, 0].masked_fill(self.erased(points), _GONE)
        return torch.cat([density[:, None], feature[:, 1:]], dim=1)

    def head(self, feature: Tensor, views: Tensor) -> Tensor:
        """Block 2 of the field."""
        return self.field.head(feature, views)

    @torch.no_grad()
    def _clear_cells(self) -> None:
        """Cells of which 27 points are all gone are empty now."""
        cells = self.occupancy.binaries[0].nonzero()
        line = torch.tensor([0.0, 0.5, 1.0], device=cells.device)
        within = torch.cartesian_prod(line, line, line)
        unit = (cells[:, None] + within) / self.occupancy.size  # [C 27 3]
        gone = self.erased(self.space.points(unit.reshape(-1, 3))).reshape(-1, 27).all(1)
        if not bool(gone.any()) or bool(gone.all()):
            what = "everything" if bool(gone.any()) else "nothing"
            raise DataError(
                f"EditedField: the box must hold a part of the field, got {what} to "
                f"{self.mode} in {self.low} to {self.high}; `potstill nerf inspect` shows the space"
            )
        x, y, z = cells[gone].unbind(1)
        self.occupancy.binaries[0, x, y, z] = False
        self.occupancy.occs[(x * self.occupancy.size + y) * self.occupancy.size + z] = 0.0
