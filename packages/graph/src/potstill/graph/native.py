"""The C++ kernels: built by the machine's compiler on first use, called through ctypes.

They need neither torch's headers nor ninja, so building takes a second or two. The libraries go to
the platform's cache, under names that hold the digest of source, flags and processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core import BackendError, atomic
from potstill.graph.edges import Contrast

__all__ = ["KERNELS", "csr_product", "edge_contrast", "library"]

_COMPILE = ("-O3", "-march=native", "-ffast-math", "-std=c++17", "-fPIC", "-pthread")
# Not linked with -ffast-math: that would make loading the library flush subnormal numbers to zero
# in the whole process.
_LINK = ("-shared", "-pthread")


KERNELS: dict[str, tuple[str, list[Any], Any]] = {
    "edges": (
        "edge_contrast",
        [
            *[ctypes.c_void_p] * 7,  # z, z_t, q_t, i, j, factor, gradient
            *[ctypes.c_int64] * 3,  # nodes, classes, edges
            ctypes.c_float,  # 1 / tau
            ctypes.c_int,  # threads
        ],
        ctypes.c_double,
    ),
    "product": (
        "csr_product",
        [
            *[ctypes.c_void_p] * 5,  # pointers, columns, values, dense, out
            *[ctypes.c_int64] * 3,  # rows, inner, width
            ctypes.c_int,  # threads
        ],
        None,
    ),
}
"""By source file: the function in it, its arguments and its result."""


@functools.cache
def library(name: str) -> Callable[..., Any]:
    """The kernel of a source file: ``edges`` or ``product``.

    Raises:
        BackendError: There is no C++ compiler, or it fails; what it said is quoted.
    """
    source = resources.files("potstill.graph").joinpath(f"{name}.cpp").read_text(encoding="utf-8")
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise BackendError(
            "native: a C++ compiler must be on PATH, got none; install g++ or clang++, or pass "
            "backend='torch'"
        )
    key = "\n".join((source, compiler, *_COMPILE, *_LINK, platform.machine(), _processor()))
    path = _cache() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with atomic(path) as temporary:
            _compile(compiler, source, temporary)
    function, arguments, result = KERNELS[name]
    loaded: Callable[..., Any] = getattr(ctypes.CDLL(str(path)), function)
    loaded.argtypes, loaded.restype = arguments, result  # type: ignore[attr-defined]
    return loaded


def edge_contrast(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """The fused form of the torch reference in `potstill.graph.edges`, for float32 on the CPU."""
    z = z.detach().contiguous()
    gradient = torch.empty_like(z) if differentiate else None
    z_t, factor = made.z_t.float().contiguous(), made.factor.float().contiguous()
    q_t = None if made.q_t is None else made.q_t.float().contiguous()
    value = library("edges")(
        z.data_ptr(),
        z_t.data_ptr(),
        None if q_t is None else q_t.data_ptr(),
        made.i.data_ptr(),
        made.j.contiguous().data_ptr(),
        factor.data_ptr(),
        None if gradient is None else gradient.data_ptr(),
        z.shape[0],
        z.shape[1],
        made.i.numel(),
        1 / made.tau,
        torch.get_num_threads(),
    )
    return z.new_tensor(value), gradient


def csr_product(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x`` for a CSR matrix [M N] and a dense one [N K], both float32 on the CPU."""
    x = x.detach().contiguous()
    out = x.new_empty(matrix.shape[0], x.shape[1])
    values = matrix.values().contiguous()
    library("product")(
        matrix.crow_indices().data_ptr(),
        matrix.col_indices().data_ptr(),
        values.data_ptr(),
        x.data_ptr(),
        out.data_ptr(),
        *matrix.shape,
        x.shape[1],
        torch.get_num_threads(),
    )
    return out


_COMPILERS = ("c++", "g++", "clang++")


def _compile(compiler: str, source: str, to: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = str(Path(folder, "edges.o"))
        _call([compiler, *_COMPILE, "-x", "c++", "-c", "-", "-o", made], source)
        _call([compiler, *_LINK, made, "-o", str(to)])


def _call(command: list[str], source: str = "") -> None:
    done = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
    if done.returncode:
        raise BackendError(
            f"native: {command[0]} must build the kernel, got exit code {done.returncode}:\n"
            f"{done.stderr[-2000:]}\npass backend='torch', or set CXX to another compiler"
        )


def _processor() -> str:
    """What -march=native depends on; a cache may be shared between machines."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return "".join(line for line in lines[:40] if line.startswith(("model name", "flags")))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "potstill" / "native"
