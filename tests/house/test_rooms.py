"""Rooms: no circle between files or folders, few arrows between folders, few floors."""

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest
from workspace import PACKAGES, ROOT

GROUND = ""  # files beside the folders
MOST_ARROWS = {"core": 20}
MOST_FLOORS = {"graph": 5, "mae": 5, "acm": 5}


def imports(tree: ast.AST) -> list[ast.ImportFrom]:
    """Imports, those inside of functions too, but not those for type checkers alone."""
    found: list[ast.ImportFrom] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found += [node] if isinstance(node, ast.ImportFrom) else imports(node)
    return found


@cache
def arrows(name: str) -> dict[str, set[str]]:
    """By file, the files of its package that it imports, also through the stub of a folder."""
    base = ROOT / "packages" / name / "src" / "potstill"
    files = {
        "potstill." + ".".join(path.relative_to(base).with_suffix("").parts): path
        for path in (base / name).rglob("*.py")
    }
    files = {module.removesuffix(".__init__"): path for module, path in files.items()}
    found: dict[str, set[str]] = {module: set() for module in files}
    for module, path in files.items():
        for node in imports(ast.parse(path.read_text(encoding="utf-8"))):
            for alias in node.names:
                target = behind(node.module or "", alias.name, files)
                if node.level == 0 and target in files and target != module:
                    found[module].add(target)
    return found


def behind(module: str, name: str, files: dict[str, Path]) -> str:
    """The file that a name comes from."""
    if f"{module}.{name}" in files:
        return f"{module}.{name}"
    stub = files.get(module, Path("absent")).with_suffix(".pyi")
    if stub.exists():
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            assert isinstance(node, ast.ImportFrom)
            if name in [alias.asname or alias.name for alias in node.names]:
                return behind(f"{module}.{node.module}" if node.module else module, name, files)
    return module


def room(module: str, name: str) -> str:
    """The folder of a file below its package; files beside the folders are the ground."""
    first, *rest = module.split(".")[2:] or [GROUND]
    folder = ROOT / "packages" / name / "src" / "potstill" / name / first
    return first if rest or folder.is_dir() else GROUND


def folders(name: str) -> dict[str, set[str]]:
    """Arrows between the folders of a package, those to and from the ground left out."""
    found: dict[str, set[str]] = {}
    for module, targets in arrows(name).items():
        here = room(module, name)
        rooms = {room(target, name) for target in targets} - {here, GROUND}
        if here != GROUND:
            found.setdefault(here, set()).update(rooms)
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_no_file_and_no_folder_stands_on_itself(name: str) -> None:
    for graph in (arrows(name), folders(name)):
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as circle:
            pytest.fail(" -> ".join(circle.args[1]))


@pytest.mark.parametrize("name", MOST_ARROWS)
def test_few_arrows_lead_from_folder_to_folder(name: str) -> None:
    between = [(a, b) for a, targets in folders(name).items() for b in sorted(targets)]
    assert len(between) <= MOST_ARROWS[name], between


@pytest.mark.parametrize("name", MOST_FLOORS)
def test_few_floors_stand_on_each_other(name: str) -> None:
    graph = folders(name)

    def floor(here: str) -> int:
        return 1 + max(map(floor, graph.get(here, ())), default=0)

    assert {here: floor(here) for here in graph if floor(here) > MOST_FLOORS[name]} == {}


def test_folders_say_what_is_inside() -> None:
    """No room for everything, and a name for each room."""
    for name in PACKAGES:
        files = (ROOT / "packages" / name / "src").rglob("*.py")
        assert not [path for path in files if path.stem in ("utils", "helpers", "misc", "common")]
