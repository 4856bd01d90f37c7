"""The multiresolution hash grid as a module over a backend."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import DataError, ShapeError
from potstill.nerf.backends import ENCODERS
from potstill.nerf.backends.levels import Levels

__all__ = ["HashGrid"]


class HashGrid(nn.Module):
    """Trilinear features of hashed grids of growing resolution.

    Source: Mueller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022, Section 3. The
    exact definition, down to the rounding, is tiny-cuda-nn's: see `Levels`. The gradient by the
    input is piecewise constant between grid planes.

    Args:
        levels: The resolved level table.
        backend: Name of a backend, or ``"auto"`` for the best one on the device of the input.

    Raises:
        BackendError: The backend cannot run here; the message says what to install.

    Example:
        >>> grid = HashGrid(Levels.geometric(levels=4, log2_rows=10, finest=64), backend="torch")
        >>> grid(torch.rand(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(self, levels: Levels, backend: str = "auto") -> None:
        super().__init__()
        if backend != "auto":
            ENCODERS.resolve(backend)  # a backend that cannot run says so before anything starts
        self.levels = levels
        self.backend = backend
        self.table = nn.Parameter(torch.empty(levels.total, levels.features).uniform_(-1e-4, 1e-4))

    def forward(self, x: Float[Tensor, "points 3"]) -> Float[Tensor, "points width"]:
        """Encode points of the unit cube.

        Args:
            x: Points; outside [0, 1] the grid wraps, as in tiny-cuda-nn, so mask them.

        Raises:
            ShapeError: ``x`` is not [points, 3], not floating, or on another device than the table.
            DataError: A point is not finite (looked for on a CPU only).
        """
        if x.ndim != 2 or x.shape[1] != 3 or not x.is_floating_point():
            raise ShapeError(
                f"HashGrid: x must be floating [points, 3], got {list(x.shape)} of {x.dtype}"
            )
        if x.device != self.table.device:
            raise ShapeError(
                f"HashGrid: x must be on {self.table.device} like the table, got {x.device}; move "
                "the field with .to(device)"
            )
        if x.device.type == "cpu" and not bool(x.isfinite().all()):  # elsewhere it would wait
            raise DataError(
                f"HashGrid: x must be finite, got {int((~x.isfinite()).any(1).sum())} of {len(x)} "
                "points that are not; are the poses finite?"
            )
        encode = ENCODERS.resolve(self.backend, x.device).run
        return encode(x.float().contiguous(), self.table, self.levels)

    def extra_repr(self) -> str:
        """Size and backend, for ``print``."""
        return (
            f"levels={len(self.levels.scale)}, features={self.levels.features}, "
            f"rows={self.levels.total}, backend={self.backend}"
        )
