"""Gradient buffers that stay allocated and zero between steps.

Allocating and zeroing the gradient of a large table costs more than computing it. A buffer is
taken from the pool by the backward, cleared row by row by `RowAdam` while it reads it anyway, and
given back. Whoever uses another optimizer gets a fresh buffer each time and loses only speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["POOL", "TOUCHED_BYTES", "Pool"]

TOUCHED_BYTES = 64  # of gradient that share a flag; a cache line


class Pool:
    """Zeroed gradients with a flag for each block that has been written to."""

    def __init__(self) -> None:
        self._clean: tuple[Tensor, Tensor] | None = None
        self._lent: tuple[object, int, int, Tensor] | None = None

    def take(self, table: Tensor) -> tuple[Tensor, Tensor, bool]:
        """A gradient like ``table``, its flags, and whether it is fresh: not zeroed yet."""
        clean, self._clean = self._clean, None
        fresh = clean is None or clean[0].shape != table.shape
        if clean is None or fresh:
            gradient = torch.empty(table.shape)
            flags = torch.zeros(_blocks(gradient), dtype=torch.uint8)
        else:
            gradient, flags = clean
        # Holding the tensor would make autograd copy it; its storage keeps the address ours.
        address, version = gradient.data_ptr(), gradient._version
        self._lent = (gradient.untyped_storage(), address, version, flags)
        return gradient, flags, fresh

    def flags(self, gradient: Tensor) -> Tensor:
        """Which blocks of ``gradient`` may be non-zero: those written to, or all if unknown.

        A gradient that was clipped, summed up or exchanged since `take` counts as unknown.
        """
        lent, self._lent = self._lent, None
        if lent is not None and lent[1:3] == (gradient.data_ptr(), gradient._version):
            return lent[3]
        return torch.ones(_blocks(gradient), dtype=torch.uint8)

    def give_back(self, gradient: Tensor, flags: Tensor) -> None:
        """Return a buffer that is zero again, with its cleared flags."""
        self._clean = (gradient.detach(), flags)


def _blocks(gradient: Tensor) -> int:
    return -(-gradient.numel() * 4 // TOUCHED_BYTES)


POOL = Pool()
