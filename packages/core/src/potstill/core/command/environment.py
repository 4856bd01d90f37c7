"""The environment: what is installed, what it can run on, and how to get what is missing.

`potstill env` shows it; paste it into every issue. It must work where much is broken, so each part
that fails becomes a line of the report instead of an exception.
"""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["environment", "show_environment"]


def environment() -> dict[str, Any]:
    """Versions, devices, optional packages and the data root, as plain values.

    Returns:
        ``potstill`` (versions of its installed packages), ``python``, ``platform``, ``memory_gib``,
        ``torch`` (version, CUDA, threads, devices; or ``error``), ``dependencies`` (versions; None
        when missing), ``optional`` (one row per package of an extra: package, version or None,
        extra, install command) and ``data`` (root, and whether it exists).

    Example:
        >>> report = environment()
        >>> "core" in report["potstill"]
        True
    """
    installed = _installed()
    requirements = [
        (name, requirement)
        for name in installed
        for requirement in map(Requirement, metadata.requires(f"potstill-{name}") or ())
    ]
    plain = {r.name: _version(r.name) for _, r in requirements if not _extra(r)}
    return {
        "potstill": installed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "memory_gib": _memory(),
        "torch": _torch(),
        "dependencies": {
            name: version
            for name, version in sorted(plain.items())
            if not name.startswith("potstill-")
        },
        "optional": [
            {
                "package": r.name,
                "version": _version(r.name),
                "extra": f"potstill-{name}[{_extra(r)}]",
                "install": f"pip install 'potstill-{name}[{_extra(r)}]'",
            }
            for name, r in requirements
            if _extra(r) and not r.name.startswith("potstill-")
        ],
        "data": _data(),
    }


def show_environment(report: dict[str, Any], console: Console) -> None:
    """Print what `environment` found as tables."""
    from rich.table import Table
    from rich.text import Text

    torch, data = report["torch"], report["data"]
    system = Table(show_header=False, box=None, pad_edge=False)
    packages = [f"{name} {version}" for name, version in report["potstill"].items()]
    system.add_row("potstill", ", ".join(packages))
    system.add_row("python", f"{report['python']} on {report['platform']}")
    if "error" in torch:
        system.add_row("torch", f"[red]cannot be imported:[/] {torch['error']}")
    else:
        system.add_row(
            "torch", f"{torch['version']}, CUDA build {torch['cuda_build'] or 'none (CPU)'}"
        )
        for device in torch["devices"]:
            system.add_row("device", f"{device['name']}: {device['description']}")
    system.add_row("memory", f"{report['memory_gib']} GiB")
    system.add_row("data root", f"{data['root']} ({'found' if data['exists'] else 'not there'})")
    console.print(system)

    console.print()
    table = Table("optional package", "version", "comes with", box=None, pad_edge=False)
    for row in report["optional"]:
        table.add_row(row["package"], row["version"] or "-", Text(row["extra"]))
    console.print(table)
    missing = dict.fromkeys(r["install"] for r in report["optional"] if not r["version"])
    for command in missing:
        console.print(f"to install: {command}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    versions = [f"{name} {v or '(missing)'}" for name, v in report["dependencies"].items()]
    console.print("dependencies: " + ", ".join(versions), highlight=False)


def _installed() -> dict[str, str]:
    found = {
        re.sub(r"^potstill[-_.]", "", name): distribution.version
        for distribution in metadata.distributions()
        if re.match(r"potstill[-_.]", name := distribution.metadata["Name"] or "")
    }
    return dict(sorted(found.items()))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extra(requirement: Requirement) -> str:
    found = re.search(r"extra\s*==\s*[\"']([^\"']+)", str(requirement.marker or ""))
    return found[1] if found else ""


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken install shows itself in many ways: this report names it
        return {"error": f"{type(error).__name__}: {error}"}
    threads = torch.get_num_threads()
    cpu = platform.processor() or platform.machine()
    devices = [{"name": "cpu", "description": f"{cpu}, {os.cpu_count()} cores, {threads} threads"}]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(index)
            description = f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}"
            devices.append({"name": f"cuda:{index}", "description": description})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "description": "Apple GPU"})
    return {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "threads": threads,
        "devices": devices,
    }


def _memory() -> float | None:
    try:
        import psutil
    except ImportError:
        return None
    return round(psutil.virtual_memory().total / 2**30, 1)


def _data() -> dict[str, Any]:
    from potstill.core.store.data import root

    return {"root": str(root()), "exists": root().is_dir()}
