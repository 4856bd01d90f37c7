"""Import direction: apps, benchmarks -> domains -> core; and nothing heavy before it is needed."""

import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import workspace
from workspace import PACKAGES, ROOT

DOMAINS = sorted(entry_points(group="potstill.domains"), key=lambda point: point.name)
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "accelerate", "timm", "torch_geometric")


def check_imports(**env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/check_imports.py"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env or None)


def test_the_contracts_hold() -> None:
    done = check_imports()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept" in done.stdout


@pytest.fixture(scope="module")
def copied_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in PACKAGES:
        source = ROOT / "packages" / name / "src" / "potstill"
        shutil.copytree(
            source, folder / "potstill", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pyc")
        )
    return folder


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("graph/planted.py", "import potstill.mae", "Domains do not know each other"),
        ("core/planted.py", "from potstill.graph import cli", "The core knows no domain"),
        ("graph/cli.py", "import torch", "Commands and configurations import nothing heavy"),
        ("mae/config.py", "import timm", "Commands and configurations import nothing heavy"),
    ],
)
def test_a_planted_violation_is_caught(
    copied_sources: Path, module: str, line: str, contract: str
) -> None:
    path = copied_sources / "potstill" / module
    before = path.read_text() if path.exists() else None
    try:
        path.write_text(f"{before or ''}\n{line}\n")
        done = check_imports(PYTHONPATH=str(copied_sources), PATH="/usr/bin:/bin")
    finally:
        path.unlink() if before is None else path.write_text(before)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{contract} BROKEN" in done.stdout


def test_the_namespace_has_no_init() -> None:
    # One such file makes all other packages unimportable.
    assert list((ROOT / "packages").glob("*/src/potstill/__init__.py")) == []
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_packages_are_called_like_their_folders() -> None:
    for name in PACKAGES:
        source = ROOT / "packages" / name / "src" / "potstill"
        assert [path.name for path in source.iterdir() if path.is_dir()] == [name]


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_imports_nothing_heavy(name: str) -> None:
    """Nor do its command and its configurations; nor does asking for its names."""
    program = f"""
import importlib, importlib.util, sys
module = importlib.import_module("potstill.{name}")
assert module.__version__
dir(module)
for part in ("cli", "config"):
    if importlib.util.find_spec(f"potstill.{name}.{{part}}"):
        importlib.import_module(f"potstill.{name}.{{part}}")
loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("point", DOMAINS, ids=lambda point: point.name)
def test_an_app_is_called_like_its_entry_point(point) -> None:
    app = point.load()
    assert app.name == (point.name,)
    assert app.help


def test_every_domain_has_an_entry_point() -> None:
    names = {point.name for point in DOMAINS}
    assert names == set(workspace.DOMAINS)


def test_what_listens_stands_on_the_one_server() -> None:
    """`potstill.core.serve` checks callers and has limits; what is written by hand has not."""
    files = [path for folder in ("apps", "packages") for path in (ROOT / folder).rglob("*.py")]
    listens = re.compile(r"\b(http\.server|socketserver|uvicorn|asyncio\.start_server)\b")
    found = {path.parent for path in files if listens.search(path.read_text(encoding="utf-8"))}
    assert found == {ROOT / "packages/core/src/potstill/core/serve"}


@pytest.mark.parametrize("name", PACKAGES)
def test_tests_of_a_package_need_the_package_only(name: str) -> None:
    """So that they prove its wheel; tests of apps and benchmarks are in folders of their own."""
    folder, found = ROOT / "tests" / name, []
    others = {f"potstill.{other}" for other in workspace.DOMAINS if other != name}
    for path in folder.rglob("*.py"):
        text, where = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        above = len(path.relative_to(folder).parts) - 1  # parents[above] is tests/<package>
        climbs = re.findall(r"__file__\)[\w.()]*\.parents\[(\d+)\]", text)
        found += [f"{where} reads above {folder.name}" for n in climbs if int(n) > above]
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in names:
                parts = module.split(".")
                if parts[0] in ("apps", "benchmarks", "tools") or ".".join(parts[:2]) in others:
                    found.append(f"{where}:{node.lineno} imports {module}")
    assert found == []
