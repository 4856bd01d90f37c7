"""Only public names are used from outside: what a package or a folder of it exports in its stub."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT = re.compile(r"^from (potstill[\w.]+) import (\((?:[^)]*)\)|[^\n#]+)", re.MULTILINE)
PLACES = {
    "apps": ["apps/**/*.py", "apps/**/*.md"],
    "benchmarks": ["benchmarks/**/*.py", "benchmarks/**/*.md"],
    "docs": ["*.md", "docs/**/*.md", "packages/*/README.md"],
    "tools": ["tools/*.py"],
    "packages": ["packages/*/src/**/*.py"],
}


@cache
def exported(module: str) -> frozenset[str] | None:
    """Names that a package or folder exports; None where it exports nothing on purpose."""
    _, name, *rooms = module.split(".")
    folder = ROOT.joinpath("packages", name, "src", "potstill", name, *rooms)
    if (stub := folder / "__init__.pyi").exists():
        imports = [n for n in ast.parse(stub.read_text()).body if isinstance(n, ast.ImportFrom)]
        return frozenset(alias.asname or alias.name for n in imports for alias in n.names)
    if (own := folder / "__init__.py").exists():
        for node in ast.parse(own.read_text(encoding="utf-8")).body:
            listed = isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
            if listed and ast.unparse(node.targets[0]) == "__all__":
                return frozenset(ast.literal_eval(node.value))
    return None


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each import of potstill; of Markdown, in its blocks of Python."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for module, names in IMPORT.findall(re.sub(r"^[ >]+from ", "from ", text, flags=re.MULTILINE)):
        for name in re.sub(r"#[^\n]*", "", names).strip("() \n").split(","):
            if name.strip():
                yield module, name.split(" as ")[0].strip()


def trespasses(path: Path) -> list[str]:
    """Imports of what is not public, from packages other than the file's own."""
    parts = path.relative_to(ROOT).parts
    own = f"potstill.{parts[1]}" if parts[0] == "packages" and path.suffix == ".py" else "none"
    return [
        f"from {module} import {name}"
        for module, name in imported(path)
        if f"{module}.".startswith(f"{own}.") is False
        and name not in (exported(module) or ())
        and exported(f"{module}.{name}") is None
    ]


@pytest.mark.parametrize("place", PLACES)
def test_only_public_names_are_imported_from_outside(place: str) -> None:
    paths = [path for pattern in PLACES[place] for path in ROOT.glob(pattern)]
    assert paths
    found = {str(p.relative_to(ROOT)): t for p in sorted(paths) if (t := trespasses(p))}
    assert found == {}


def test_a_private_name_is_seen(tmp_path: Path) -> None:
    assert exported("potstill.core.engine.fit") is None
    assert "fit" in (exported("potstill.core") or ())
    assert "kd" in (exported("potstill.core.criteria") or ())
    assert "Pair" in (exported("potstill.core.measure.bench") or ())
    page = tmp_path / "page.md"
    page.write_text("```python\nfrom potstill.core.engine.fit import (\n    fit,  # here\n)\n```\n")
    assert list(imported(page)) == [("potstill.core.engine.fit", "fit")]
