"""The packages of this workspace: what every tool that goes over them starts from."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
DOMAINS = [name for name in PACKAGES if name != "core"]
SOURCES = [f"packages/{name}/src" for name in PACKAGES]


def project(name: str) -> dict[str, Any]:
    """The table ``[project]`` of a package."""
    text = (ROOT / "packages" / name / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]
