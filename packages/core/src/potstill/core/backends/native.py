"""Native code: one C++ file, compiled for this processor on first use and loaded by ctypes.

It needs neither torch's headers nor ninja, so that building takes a second or two.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

from potstill.core.errors import BackendError
from potstill.core.files import atomic

__all__ = ["native_library"]

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-pthread")
_LOCK = threading.Lock()


def native_library(source: Path, *flags: str) -> ctypes.CDLL:
    """The library made of a C++ file: loaded already, from the cache, or compiled now.

    The compiler is ``$CXX``, else c++, g++ or clang++. The cache is ``potstill/native`` in
    ``$XDG_CACHE_HOME`` or ``~/.cache``; its keys cover source, flags, compiler and processor, so
    that machines which share a home never run each other's instructions. Threads wait for each
    other; processes that compile at the same time do not disturb each other.

    Args:
        source: C++ file with a plain C interface.
        flags: More flags of the compiler. They do not reach the linker: a library linked with
            ``-ffast-math`` would flush subnormal numbers to zero in the whole process.

    Raises:
        BackendError: No compiler, or one that fails; a cache that cannot be written; a library that
            cannot be loaded.
    """
    with _LOCK:
        return _load(source, flags)


@cache
def _load(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    wanted = shlex.split(os.environ.get("CXX", ""))  # also "ccache g++"
    names = wanted[:1] or _COMPILERS
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise BackendError(
            f"no C++ compiler was found to compile {source.name}; install one (Debian: apt install "
            "g++; macOS: xcode-select --install), or set CXX"
        )
    arm = platform.machine() in ("arm64", "aarch64")
    flags = (*_FLAGS, "-mcpu=native" if arm else "-march=native", *flags)
    words = [compiler, *wanted[1:]]
    parts = (source.read_text(encoding="utf-8"), *words, *flags, _processor())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base, "potstill", "native", f"{source.stem}-{digest}.so")
    try:
        if not _whole(path):
            with atomic(path) as temporary:
                _compile(words, source, flags, temporary)
            with atomic(path.with_suffix(".sha256")) as temporary:
                temporary.write_text(_hash(path), encoding="ascii")
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"the compiled {source.name} could not be written to or loaded from {path.parent}: "
            f"{error}; set XDG_CACHE_HOME to another folder"
        ) from error


def _whole(library: Path) -> bool:
    """Whether it is what was compiled: to load half of a library may end the process."""
    try:
        return library.with_suffix(".sha256").read_text(encoding="ascii") == _hash(library)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(compiler: list[str], source: Path, flags: tuple[str, ...], to: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        compiled = str(Path(folder, "compiled.o"))
        for command in (
            [*compiler, *flags, "-c", str(source), "-o", compiled],
            [*compiler, "-shared", "-pthread", compiled, "-o", str(to)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                raise BackendError(
                    f"compiling {source.name} with {Path(compiler[0]).name} failed (exit code "
                    f"{done.returncode}): {done.stderr.strip()[-2000:]}; set CXX to another one"
                )


def _processor() -> str:
    """Model and instruction sets, as far as the system names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.system()} {platform.processor()} {platform.machine()}"
    names = ("model name", "flags", "CPU part", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))
