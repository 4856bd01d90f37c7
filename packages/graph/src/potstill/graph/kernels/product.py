"""The product of a sparse matrix in compressed rows and a dense one, and its backends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from potstill.core.backends import Backend, Backends
from potstill.graph.kernels import native

__all__ = ["PRODUCTS", "product"]


def product(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x`` in their own type, also under autocast: there is no sparse one in 16 bits."""
    with torch.autocast(x.device.type, enabled=False):
        return matrix @ x


PRODUCTS: Backends[Callable[[Tensor, Tensor], Tensor]] = Backends(
    "propagate",
    Backend(
        "native",
        "C++ compiled on first use; deterministic",
        native.csr_product,
        ("cpu",),
        check=partial(native.kernel, "product"),
    ),
    Backend("torch", "plain torch, the reference", product),
)
"""Backends of ``matrix @ x`` for CSR [M N] and dense [N K], both float32."""
