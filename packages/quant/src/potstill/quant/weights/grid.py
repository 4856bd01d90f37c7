"""Grids: integers times a scale for each row, and the scale that fits weights best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError

__all__ = ["Grid"]

_BITS = (1, 2, 3, 4, 7, 8, 32)
_SIZES = 80  # of the scales that `Grid.scale` tries


@dataclass(frozen=True)
class Grid:
    """Levels that weights may take: ``scale * (q + offset)`` with q in [low, high].

    Args:
        bits: 1, 2, 3, 4, 7 or 8; 32 leaves weights alone. Seven bits are what 8-bit instructions
            without VNNI can multiply without overflow.
        axis: Axis that has a scale for each of its entries; None has one for the tensor.
        block: Weights in a row that share a scale, instead of the whole row.
        form: "twos" is [-2^(b-1), 2^(b-1) - 1], "restricted" is symmetric around 0, and "midrise"
            has no zero: ±1/2, ±3/2, ... A single bit is always "midrise".

    Raises:
        ConfigError: Another number of bits, a block below 1, or one bit of another form.

    Example:
        >>> grid = Grid(bits=2)
        >>> grid.low, grid.high
        (-2, 1)
        >>> grid.integers(torch.tensor([[0.35, -0.8, 1.9]]), torch.tensor([[0.5]]))
        tensor([[ 1., -2.,  1.]])
    """

    bits: int = 8
    axis: int | None = 0
    block: int | None = None
    form: Literal["twos", "restricted", "midrise"] = "twos"

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise ConfigError(
                f"Grid: bits must be one of {', '.join(map(str, _BITS))}, got {self.bits}; "
                "5 and 6 would be stored as 8"
            )
        if self.block is not None and self.block < 1:
            raise ConfigError(f"Grid: block must be at least 1, got {self.block}")
        if self.bits == 1 and self.form != "midrise":
            object.__setattr__(self, "form", "midrise")

    @property
    def low(self) -> int:
        """Smallest integer."""
        return -(2 ** (self.bits - 1)) + (self.form == "restricted")

    @property
    def high(self) -> int:
        """Largest integer."""
        return 2 ** (self.bits - 1) - 1

    @property
    def offset(self) -> float:
        """What is added to integers: one half on a mid-rise grid, else 0."""
        return 0.5 if self.form == "midrise" else 0.0

    @property
    def stored(self) -> int:
        """Bits of a weight in a file: 3 are stored as 4, and 7 as 8."""
        return {3: 4, 7: 8}.get(self.bits, self.bits)

    def rows(self, w: Float[Tensor, "*shape"]) -> Float[Tensor, "rows inputs"]:
        """Weights that share a scale in one row; a short last block is filled with zeros."""
        flat = w.reshape(1, -1) if self.axis is None else w.movedim(self.axis, 0).flatten(1)
        if self.block is None:
            return flat
        filled = torch.nn.functional.pad(flat, (0, -flat.shape[1] % self.block))
        return filled.reshape(-1, self.block)

    def shaped(
        self, rows: Float[Tensor, "rows inputs"], like: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """Inverse of `rows`, in the shape of ``like``."""
        if self.axis is None:
            return rows.reshape(-1)[: like.numel()].reshape(like.shape)
        moved = like.movedim(self.axis, 0).shape
        flat = rows.reshape(moved[0], -1)[:, : like.numel() // moved[0]]
        return flat.reshape(moved).movedim(0, self.axis)

    def integers(
        self, rows: Float[Tensor, "rows inputs"], scale: Float[Tensor, "rows 1"]
    ) -> Float[Tensor, "rows inputs"]:
        """The nearest integer of each weight, halves to even."""
        return (rows / scale - self.offset).round().clamp(self.low, self.high)

    def values(
        self, integers: Float[Tensor, "rows inputs"], scale: Float[Tensor, "rows 1"]
    ) -> Float[Tensor, "rows inputs"]:
        """Weights of these integers."""
        return scale * (integers + self.offset)

    @torch.no_grad()
    def scale(
        self, rows: Float[Tensor, "rows inputs"], method: Literal["max", "mse"] = "mse"
    ) -> Float[Tensor, "rows 1"]:
        """A scale for each row: 1 where all weights are 0.

        Args:
            rows: Weights, as `rows` gives them.
            method: "max" lets the largest magnitude be the largest level. "mse" minimises the
                squared error over 80 sizes, on a two's complement grid of both signs (a negative
                scale gives the extra level to the other side), and then improves each by least
                squares.

        Raises:
            ConfigError: An unknown method.
        """
        if method not in ("max", "mse"):
            raise ConfigError(f"Grid.scale: method must be 'max' or 'mse', got {method!r}")
        largest = rows.abs().amax(1, keepdim=True) / (self.high + self.offset)
        largest = largest.where(largest > 0, 1.0)
        if method == "max":
            return largest
        best, least = largest, self._error(rows, largest)
        for size in range(1, _SIZES + 1):
            for sign in (1.0, -1.0)[: 1 + (self.form == "twos")]:
                scale = largest * (sign * size / _SIZES)
                error = self._error(rows, scale)
                best, least = best.where(error >= least, scale), least.minimum(error)
        for _ in range(3):  # the best scale of these integers, then again the nearest integers
            levels = self.integers(rows, best) + self.offset
            square = levels.square().sum(1, keepdim=True)
            fitted = (rows * levels).sum(1, keepdim=True) / square.where(square > 0, 1.0)
            fitted = fitted.where(fitted.abs() > 0, best)
            error = self._error(rows, fitted)
            best, least = best.where(error >= least, fitted), least.minimum(error)
        return best

    def _error(self, rows: Tensor, scale: Tensor) -> Tensor:
        found = self.values(self.integers(rows, scale), scale)
        return (found - rows).square().sum(1, keepdim=True)
