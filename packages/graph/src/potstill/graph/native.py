"""The C++ kernel: built by the machine's compiler on first use, called through ctypes.

It needs neither torch's headers nor ninja, so building takes a second or two. The library goes to
the platform's cache, under a name that holds the digest of source, flags and processor.
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
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from potstill.core.errors import BackendError
from potstill.core.files import atomic
from potstill.graph.edges import Contrast

__all__ = ["edge_contrast", "library"]

_COMPILE = ("-O3", "-march=native", "-ffast-math", "-std=c++17", "-fPIC", "-pthread")
# Not linked with -ffast-math: that would make loading the library flush subnormal numbers to zero
# in the whole process.
_LINK = ("-shared", "-pthread")


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernel.

    Raises:
        BackendError: There is no C++ compiler, or it fails; what it said is quoted.
    """
    source = resources.files("potstill.graph").joinpath("edges.cpp").read_text(encoding="utf-8")
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise BackendError(
            "native: a C++ compiler must be on PATH, got none; install g++ or clang++, or pass "
            "backend='torch'"
        )
    key = "\n".join((source, compiler, *_COMPILE, *_LINK, platform.machine(), _processor()))
    name = f"edges-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    path = _cache() / name
    if not path.exists():
        with atomic(path) as temporary:
            _compile(compiler, source, temporary)
    loaded = ctypes.CDLL(str(path))
    loaded.edge_contrast.argtypes = [
        *[ctypes.c_void_p] * 7,  # z, z_t, q_t, i, j, factor, gradient
        *[ctypes.c_int64] * 3,  # nodes, classes, edges
        ctypes.c_float,  # 1 / tau
        ctypes.c_int,  # threads
    ]
    loaded.edge_contrast.restype = ctypes.c_double
    return loaded


def edge_contrast(z: Tensor, made: Contrast, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """The fused form of the torch reference in `potstill.graph.edges`, for float32 on the CPU."""
    z = z.detach().contiguous()
    gradient = torch.empty_like(z) if differentiate else None
    z_t, factor = made.z_t.float().contiguous(), made.factor.float().contiguous()
    q_t = None if made.q_t is None else made.q_t.float().contiguous()
    value = library().edge_contrast(
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
