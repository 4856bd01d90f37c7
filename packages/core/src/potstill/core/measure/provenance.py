"""Provenance: where a figure came from, so that it can be had again."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

__all__ = ["commit_of", "provenance"]


def provenance(seed: int | None = None, data: str = "", device: str = "auto") -> dict[str, str]:
    """What a row of a report carries beside its figures.

    Args:
        seed: Seed of the run, where there is one.
        data: Fingerprint of the data (:func:`potstill.core.store.data.fingerprint`), or its name.
        device: Device of the computation; "auto" names the first CUDA device, else the CPU.

    Returns:
        ``date`` (UTC), ``device``, ``cpu``, ``threads``, ``load`` (one minute), ``python``,
        ``torch``, ``potstill`` (versions of the installed packages), ``commit`` (of the potstill
        sources, with ``+`` when they were changed since), ``seed`` and ``data``: all as text, empty
        when unknown.

    Example:
        >>> provenance(seed=3)["seed"]
        '3'
    """
    import psutil
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = torch.device(device).type == "cuda"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": torch.cuda.get_device_name(device) if on_gpu else device,
        "cpu": _cpu(),
        "threads": str(torch.get_num_threads()),
        "load": f"{psutil.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "potstill": _versions(),
        "commit": _commit(),
        "seed": "" if seed is None else str(seed),
        "data": data,
    }


@functools.cache
def _cpu() -> str:
    """Model, widest instructions and logical cores; the platform's name where it says no model."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass
    sets = {"avx512f": "AVX-512", "amx_tile": "AMX"} if "avx512f" in flags else {"avx2": "AVX2"}
    widest = ", ".join(said for flag, said in sets.items() if flag in flags)
    return f"{name} ({widest}) x{os.cpu_count()}" if widest else f"{name} x{os.cpu_count()}"


@functools.cache
def _versions() -> str:
    found = {
        name.removeprefix("potstill-"): distribution.version
        for distribution in metadata.distributions()
        if (name := distribution.metadata["Name"] or "").startswith("potstill-")
    }
    return " ".join(f"{name}={version}" for name, version in sorted(found.items()))


@functools.cache
def _commit() -> str:
    """Commit of the work tree that holds this file; empty for an installed wheel.

    The file must be tracked there: a virtual environment inside a user's own repository is not us.
    """
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit = _git(here.parent, "rev-parse", "--short=12", "HEAD")
        # Changed results, notes and tests do not change what was measured; programs do.
        programs = (":(top)packages/*/src/*", ":(top)benchmarks/*.py", ":(top)apps/*.py")
        options = ("--porcelain", "--untracked-files=no", "--")
        changed = _git(here.parent, "status", *options, *programs)
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")


def commit_of(folder: Path) -> str:
    """Short commit of the work tree whose root is ``folder``, with ``+`` when it was changed.

    Empty for a folder that is not the root of a work tree: what is around it is something else.
    """
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return ""
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + "+" * bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout.strip()
