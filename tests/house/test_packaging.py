"""What goes into a wheel, versions and changelogs, and that guarded tests are skipped, not lost."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from workspace import PACKAGES, ROOT, project

projects = pytest.mark.parametrize("name", PACKAGES)


@projects
def test_the_top_entry_of_the_changelog_is_the_version(name: str) -> None:
    text = (ROOT / "packages" / name / "CHANGELOG.md").read_text()
    entries = re.findall(r"^## \[?(\d[^\s\]]*)", text, re.MULTILINE)
    assert entries, f"packages/{name}/CHANGELOG.md has no entry"
    assert entries[0] == project(name)["version"]


@projects
def test_projects_agree_on_what_is_common(name: str) -> None:
    this, core = project(name), project("core")
    assert this["name"] == f"potstill-{name}"
    for key in ("requires-python", "license", "readme", "authors", "classifiers"):
        assert this[key] == core[key], key
    urls = {
        key: url.replace("/packages/core/", f"/packages/{name}/")
        for key, url in core["urls"].items()
    }
    assert this["urls"] == urls
    dependencies = {re.split(r"[<>=~!\[ ]", d)[0]: d for d in this["dependencies"]}
    if name != "core":
        major, minor = core["version"].split(".")[:2]
        assert (
            dependencies["potstill-core"]
            == f"potstill-core>={major}.{minor},<{major}.{int(minor) + 1}"
        )
        assert this["entry-points"]["potstill.domains"] == {name: f"potstill.{name}.cli:app"}


def test_a_dependency_has_one_floor() -> None:
    """So that packages that are installed together want the same."""
    found: dict[str, set[str]] = {}
    for about in map(project, PACKAGES):
        extras = about.get("optional-dependencies", {}).values()
        for requirement in (*about["dependencies"], *(each for extra in extras for each in extra)):
            name, bounds = re.match(r"([\w-]+)(?:\[\w+\])?([^;]*)", requirement).groups()
            found.setdefault(name, set()).add(bounds)
    assert {name: bounds for name, bounds in found.items() if len(bounds) > 1} == {}
    assert all(bounds != {""} for bounds in found.values())


@projects
def test_a_package_has_what_a_wheel_needs(name: str) -> None:
    folder = ROOT / "packages" / name
    source = folder / "src" / "potstill" / name
    for path in (folder / "LICENSE", folder / "README.md", source / "py.typed"):
        assert path.is_file(), path
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert len((folder / "README.md").read_text()) > 300
    stray = [p for p in source.rglob("*") if p.suffix in (".pth", ".npz", ".png", ".csv")]
    assert stray == []
    assert [p for p in source.rglob("*") if p.stat().st_size > 2**20] == []


def test_the_top_level_is_what_it_should_be() -> None:
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git repository")
    names = {line.split("/")[0] for line in done.stdout.splitlines() if "/" in line}
    assert names <= {"packages", "apps", "benchmarks", "tests", "tools", "docs", ".ci", ".github"}
    assert not (ROOT / "pyproject.toml").exists()


def test_as_many_cuda_tests_are_skipped_as_are_marked() -> None:
    """A guard that forgets to skip, or that skips too much, shows itself on a CPU machine."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device: these tests run")
    files = [p for p in (ROOT / "tests").rglob("test_*.py") if "cuda" in p.read_text()]
    files.remove(Path(__file__))
    if not files:
        pytest.skip("no test is marked cuda")
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    selected = re.search(r"(\d+) selected", done.stdout) or re.search(
        r"collected (\d+) items?$", done.stdout, re.MULTILINE
    )
    marked = int(selected[1]) if selected else 0
    summary = done.stdout.strip().splitlines()[-1]
    found = {k: int(n) for n, k in re.findall(r"(\d+) (passed|failed|skipped|errors?)", summary)}
    assert found == ({"skipped": marked} if marked else {}), done.stdout[-3000:]
