"""The ``native`` backend: C++ kernels under autograd."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core import BackendError
from potstill.core.backends import native_library
from potstill.nerf.backends.gradients import POOL, TOUCHED_BYTES
from potstill.nerf.backends.levels import Levels

__all__ = ["WIDTHS", "encode", "library", "march", "row_adam"]

WIDTHS = (1, 2, 4, 8)
"""Features of a row that the kernels are compiled for."""


_FLAGS = (
    # floor and sqrt become instructions; a*b+c stays two roundings unless the source says fma
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    # GCC and Clang use half of AVX-512 unless told otherwise
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
)


def library() -> ctypes.CDLL:
    """The kernels, compiled on first use.

    Raises:
        BackendError: They cannot be compiled here.
    """
    return native_library(Path(__file__).with_name("native.cpp"), *_FLAGS)


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """As in the reference, in float32; its gradients are float32 too."""
    y: Tensor = _Encode.apply(x, table, levels)
    return y


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, levels: Levels) -> Tensor:
        axes, table = _checked("x", x.T), _checked("table", table)
        y = _huge(torch.empty(len(x), levels.width))
        _call("encode", *_common(axes, levels), table, y)
        ctx.save_for_backward(axes, table)
        ctx.levels = levels
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        axes, table = ctx.saved_tensors
        dy, common = dy.float().contiguous(), _common(axes, ctx.levels)
        dx = dtable = None
        if ctx.needs_input_grad[1]:
            dtable, touched, fresh = POOL.take(table)
            if fresh:
                _huge(dtable)
            _call("encode_backward_table", *common, dy, dtable, touched, int(fresh))
        if ctx.needs_input_grad[0]:
            dx = torch.zeros(len(dy), 3)
            _call("encode_backward_input", *common, dy, table, dx)
        return dx, dtable, None


def row_adam(
    table: Tensor,
    mean: Tensor,
    square: Tensor,
    gradient: Tensor,
    touched: Tensor,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    correction: float,
) -> None:
    """Adam on rows whose gradient is not zero; clears ``gradient`` and ``touched``."""
    tensors = (table, mean, square, gradient, touched)
    numbers = map(ctypes.c_float, (rate, *betas, eps, correction))
    size = (table.numel(), table.shape[1])
    _call("row_adam", *tensors, *size, *numbers, torch.get_num_threads())


class _March(ctypes.Structure):
    _fields_ = [
        *[
            (name, ctypes.c_void_p)
            for name in ("origin", "direction", "base", "far", "jitter", "edges", "low", "inverse")
        ],
        ("occupied", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("steps", "resolution", "contracted")],
    ]


def march(
    origins: Tensor,
    directions: Tensor,
    base: Tensor,
    far: Tensor,
    jitter: Tensor,
    edges: Tensor,
    unit: tuple[Tensor, Tensor, bool],
    occupied: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As in the reference; skips without storing what it skips."""
    low, inverse, contracted = unit
    given = [origins, directions, base, far, jitter, edges, low, inverse]
    held = [_checked("march", tensor) for tensor in given]
    cells = occupied.contiguous()
    call = _March(
        *map(_pointer, [*held, cells]), len(edges) - 1, occupied.shape[0], int(contracted)
    )
    rays, threads = ctypes.c_int64(len(origins)), ctypes.c_int64(torch.get_num_threads())
    counts = torch.zeros(len(origins), dtype=torch.int64)
    library().potstill_march_count(ctypes.byref(call), rays, _pointer(counts), threads)
    starts = counts.cumsum(0) - counts
    total = int(counts.sum())
    t, dt = torch.empty(total), torch.empty(total)
    ray = torch.empty(total, dtype=torch.int64)
    pointers = map(_pointer, (starts, t, dt, ray))
    library().potstill_march_write(ctypes.byref(call), rays, *pointers, threads)
    return t, dt, ray, counts


def _checked(name: str, tensor: Tensor) -> Tensor:
    """Contiguous float32 on the CPU, or an error instead of a crash."""
    if tensor.device.type != "cpu":
        raise BackendError(
            f"encode: {name} must be on the cpu, got {tensor.device}; move the field"
        )
    return tensor.detach().to(torch.float32).contiguous()


def _common(axes: Tensor, levels: Levels) -> tuple[Any, ...]:
    """What all kernels of the grid begin with; points come axis by axis."""
    size = (len(levels.scale), levels.features)
    return (axes, axes.shape[1], levels.records, *size, torch.get_num_threads())


def _huge(fresh: Tensor) -> Tensor:
    """The same memory, on huge pages where the system has them."""
    if fresh.nbytes >= 2**22:
        library().potstill_huge_pages(_pointer(fresh), ctypes.c_int64(fresh.nbytes))
    return fresh


def _call(name: str, *arguments: Any) -> None:
    if getattr(library(), f"potstill_{name}")(*map(_pointer, arguments)):
        raise BackendError(f"{name}: features must be one of {WIDTHS}")


def _pointer(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.c_int64(value) if isinstance(value, int) else value


assert TOUCHED_BYTES == 64, "BLOCK in native.cpp"
