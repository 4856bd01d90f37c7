"""The C++ kernels, for float32 on the CPU."""

from __future__ import annotations

from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core import ShapeError
from potstill.core.backends import native_library
from potstill.graph.kernels.contrast import Contrast

__all__ = ["csr_product", "edge_contrast", "kernel"]

_SIGNATURES: dict[str, tuple[str, list[Any], Any]] = {
    # z, z_t, q_t, i, j, factor, gradient; nodes, classes, edges; 1 / tau; threads
    "edges": ("edge_contrast", [*[c_void_p] * 7, *[c_int64] * 3, c_float, c_int], c_double),
    # pointers, columns, values, dense, out; rows, inner, width; threads
    "product": ("csr_product", [*[c_void_p] * 5, *[c_int64] * 3, c_int], None),
}


@cache
def kernel(source: str) -> Any:
    """The function of a source file, ``edges`` or ``product``.

    Raises:
        BackendError: It cannot be compiled here.
    """
    name, arguments, result = _SIGNATURES[source]
    library = native_library(Path(__file__).with_name(f"{source}.cpp"), "-ffast-math")
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, result
    return function


def edge_contrast(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """The fused form of the reference in `potstill.graph.kernels.contrast`.

    Raises:
        ShapeError: Ends that are not int64 (`check_ends` sees to their range), other rows of the
            student than of the teacher.
    """
    if not (made.i.dtype == made.j.dtype == torch.int64) or z.shape != made.z_t.shape:
        raise ShapeError(
            f"HighFrequency: ends of edges must be int64, and z_s {list(made.z_t.shape)} like z_t, "
            f"got {made.i.dtype}, {made.j.dtype} and {list(z.shape)}"
        )
    z = z.detach().contiguous()
    gradient = torch.empty_like(z) if differentiate else None
    z_t, factor = made.z_t.float().contiguous(), made.factor.float().contiguous()
    q_t = None if made.q_t is None else made.q_t.float().contiguous()
    value = kernel("edges")(
        z.data_ptr(),
        z_t.data_ptr(),
        None if q_t is None else q_t.data_ptr(),
        made.i.contiguous().data_ptr(),
        made.j.contiguous().data_ptr(),
        factor.data_ptr(),
        None if gradient is None else gradient.data_ptr(),
        z.shape[0],
        z.shape[1],
        made.i.numel(),
        1 / made.tau,
        torch.get_num_threads(),
    )
    return z.new_tensor(value, dtype=torch.float64), gradient


def csr_product(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x`` for a CSR matrix [M N] and a dense one [N K], both float32 on the CPU."""
    if matrix.shape[1] != len(x) or not x.dtype == matrix.dtype == torch.float32:
        raise ShapeError(
            f"csr_product: x must be [{matrix.shape[1]}, K] float32 like the matrix, got "
            f"{list(x.shape)} {x.dtype} and {matrix.dtype}"
        )
    x = x.detach().contiguous()
    pointers, columns = matrix.crow_indices().long(), matrix.col_indices().long()
    out = x.new_empty(matrix.shape[0], x.shape[1])
    values = matrix.values().contiguous()
    kernel("product")(
        pointers.data_ptr(),
        columns.data_ptr(),
        values.data_ptr(),
        x.data_ptr(),
        out.data_ptr(),
        *matrix.shape,
        x.shape[1],
        torch.get_num_threads(),
    )
    return out
