"""The resolved level table of a multiresolution hash grid."""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from potstill.core import CheckpointError, ConfigError

__all__ = ["PRIMES", "Levels"]

PRIMES = (1, 2654435761, 805459861)

_RECORD = np.dtype(
    [("scale", "f4"), ("resolution", "u4"), ("rows", "u4"), ("dense", "u4"), ("offset", "i8")]
)


@dataclass(frozen=True)
class Levels:
    """Scale, resolution, rows and offset of each level, as every backend receives them.

    Source: Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022, Eqs. (2)-(4), in
    the layout of tiny-cuda-nn: level l has ``scale = 2^(l log2 b) N_0 - 1`` and
    ``ceil(scale) + 1`` vertices an axis; the point x sits at ``fma(x, scale, 0.5)``, rounded once.
    Libraries round powers differently, and a ceil turns that into another table: so the numbers are
    computed once, stored in checkpoints, and never again.

    Args:
        features: Numbers in a row, F: 1, 2, 4 or 8.
        scale: float32 values, one a level.
        resolution: Vertices an axis.
        rows: Rows of a level; the level is hashed where ``resolution^3 > rows``.
        offset: First row of a level in the table.

    Example:
        >>> levels = Levels.geometric(levels=2, features=2, log2_rows=10, base=4, finest=16)
        >>> levels.resolution, levels.rows, levels.hashed
        ((4, 16), (64, 1024), (False, True))
    """

    features: int
    scale: tuple[float, ...]
    resolution: tuple[int, ...]
    rows: tuple[int, ...]
    offset: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.features not in (1, 2, 4, 8):
            raise ConfigError(f"Levels: features must be 1, 2, 4 or 8, got {self.features}")
        if not len(self.scale) == len(self.resolution) == len(self.rows) == len(self.offset) > 0:
            raise ConfigError("Levels: scale, resolution, rows and offset must have equal lengths")
        # Kernels read the table where these numbers say.
        start = 0
        for level, (scale, side, rows, offset) in enumerate(
            zip(self.scale, self.resolution, self.rows, self.offset, strict=True)
        ):
            power = rows > 0 and rows & (rows - 1) == 0
            fits = 0 <= scale < 2**20 and side == math.ceil(scale) + 1 and offset == start
            if not fits or rows < 1 or (side**3 > rows and not power):
                raise ConfigError(
                    f"Levels: level {level} must begin at row {start}, have ceil(scale) + 1 "
                    "vertices an axis, and 2^k rows where it is hashed, got offset "
                    f"{offset}, scale {scale}, resolution {side} and {rows} rows"
                )
            start += rows

    @classmethod
    def geometric(
        cls,
        levels: int = 16,
        features: int = 2,
        log2_rows: int = 19,
        base: int = 16,
        finest: int = 2048,
    ) -> Levels:
        """Resolutions from ``base`` to ``finest`` in a geometric series, at most 2^log2_rows rows.

        Raises:
            ConfigError: A number out of range.
        """
        if not (1 <= levels <= 32 and 3 <= log2_rows <= 28 and 2 <= base <= finest):
            raise ConfigError(
                "Levels.geometric: levels must be 1 to 32, log2_rows 3 to 28 and base from 2 to "
                f"finest, got {levels}, {log2_rows}, {base} and {finest}"
            )
        factor = (finest / base) ** (1 / max(levels - 1, 1))
        return cls.growing(levels, features, log2_rows, base, factor)

    @classmethod
    def growing(
        cls, levels: int, features: int, log2_rows: int, base: int, factor: float
    ) -> Levels:
        """As `geometric`, from the factor between levels, in the arithmetic of tiny-cuda-nn.

        Source: tiny-cuda-nn, ``grid_scale`` and ``grid_resolution``: every step is rounded to
        float32, the factor and its logarithm too, and powers are those of the C library.
        """
        growth = np.float32(_float("log2f")(np.float32(factor)))
        scale, resolution, rows, offset = [], [], [], [0]
        for level in range(levels):
            power = np.float32(_float("exp2f")(np.float32(level) * growth))
            value = power * np.float32(base) - np.float32(1)
            vertices = math.ceil(value) + 1
            scale.append(float(value))
            resolution.append(vertices)
            rows.append(min(-(-(vertices**3) // 8) * 8, 2**log2_rows))
            offset.append(offset[-1] + rows[-1])
        return cls(features, tuple(scale), tuple(resolution), tuple(rows), tuple(offset[:-1]))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Levels:
        """The inverse of `as_dict`.

        Raises:
            CheckpointError: A key is missing or unknown.
        """
        try:
            columns = {k: tuple(v) for k, v in values.items() if k != "features"}
            return cls(values["features"], **columns)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"Levels: the level table is damaged: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: v if k == "features" else list(v) for k, v in asdict(self).items()}

    @property
    def total(self) -> int:
        """Rows of the whole table."""
        return self.offset[-1] + self.rows[-1]

    @property
    def width(self) -> int:
        """Numbers that a point is encoded into."""
        return len(self.scale) * self.features

    @property
    def hashed(self) -> tuple[bool, ...]:
        """Which levels are hashed."""
        return tuple(n**3 > rows for n, rows in zip(self.resolution, self.rows, strict=True))

    @cached_property
    def records(self) -> np.ndarray[Any, Any]:
        """The table as the native kernels read it."""
        dense = [not hashed for hashed in self.hashed]
        columns = zip(self.scale, self.resolution, self.rows, dense, self.offset, strict=True)
        return np.array(list(columns), dtype=_RECORD)


@cache
def _float(name: str) -> Any:
    """A function of the C library on float32: NumPy's are others, by processor."""
    function = getattr(ctypes.CDLL("ucrtbase" if os.name == "nt" else None), name)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    return function
