"""Builds the native kernels with the machine's C++ compiler, once, into a cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from potstill.core import BackendError, atomic

__all__ = ["compiler", "library"]

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread"),
    # floor and sqrt become instructions; a*b+c stays two roundings unless the source says fma
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)


def compiler() -> str | None:
    """Path of the C++ compiler: ``$CXX``, else c++, g++ or clang++; None without any."""
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels, from the cache or built now.

    The cache key covers source, flags, compiler and processor, so that a home folder shared by
    different machines never gives one the instructions of another.

    Raises:
        BackendError: No compiler, or it fails; the message has its words.
    """
    program = compiler()
    if program is None:
        raise BackendError(
            "library: no C++ compiler found; install one (Debian: apt install g++; macOS: "
            "xcode-select --install), or set CXX; backend 'torch' works without, slower"
        )
    flags = (*_FLAGS, *_native_flags())
    key = hashlib.sha256(
        b"\0".join([_SOURCE.read_bytes(), *map(str.encode, (program, *flags, _processor()))])
    ).hexdigest()[:16]
    path = _cache() / f"nerf-{key}.so"
    if not path.exists():
        _compile(program, flags, path)
    return ctypes.CDLL(str(path))


def _native_flags() -> tuple[str, ...]:
    """For this very processor; GCC and Clang use half of AVX-512 unless told otherwise."""
    machine = platform.machine()
    if machine in ("arm64", "aarch64"):
        return ("-mcpu=native",)
    wide = ("-mprefer-vector-width=512",) if machine in ("x86_64", "AMD64") else ()
    return ("-march=native", *wide)


def _cache() -> Path:
    """Compiled code belongs to this user and machine, so not below the data root."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    return (Path(chosen) if chosen else Path.home() / ".cache") / "potstill" / "compiled"


def _compile(program: str, flags: tuple[str, ...], path: Path) -> None:
    with atomic(path) as temporary:
        done = subprocess.run(
            [program, *flags, str(_SOURCE), "-o", str(temporary)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise BackendError(
                f"library: {program} must compile {_SOURCE.name}, got exit code {done.returncode}: "
                f"{done.stderr.strip()[-600:]}"
            )


def _processor() -> str:
    """Model and instruction sets, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({x for x in lines if x.startswith(("model name", "flags"))}))
    except OSError:
        return f"{sys.platform} {platform.processor()} {platform.machine()}"
