"""The product of a sparse matrix in compressed rows and a dense one, and its backends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from potstill.core.backends import Backend, Backends
from potstill.graph.data import tensors
from potstill.graph.kernels import native

__all__ = ["PRODUCTS"]

PRODUCTS: Backends[Callable[[Tensor, Tensor], Tensor]] = Backends(
    "propagate",
    Backend(
        "native",
        "C++ compiled on first use; deterministic",
        native.csr_product,
        ("cpu",),
        check=partial(native.kernel, "product"),
    ),
    Backend("torch", "plain torch, the reference", tensors.product),
)
"""Backends of ``matrix @ x`` for CSR [M N] and dense [N K], both float32."""
