"""The public project: workflows and owners know every package, constraints are allowed."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from workspace import PACKAGES, ROOT, project

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def test_every_package_has_owners() -> None:
    lines = (GITHUB / "CODEOWNERS").read_text(encoding="utf-8").splitlines()
    owned = [line.split()[0] for line in lines if line.startswith("/packages/")]
    assert owned == [f"/packages/{name}/" for name in PACKAGES]


def test_a_domain_concerns_itself_and_the_core_concerns_all() -> None:
    from changed import EVERYWHERE, FOLDERS, folders

    present = {path.parent.name for path in ROOT.glob("tests/*/test_*.py")}
    present |= {path.parents[1].name for path in ROOT.glob("tests/*/*/test_*.py")}
    assert present <= set(FOLDERS)
    assert folders(["packages/graph/README.md", "benchmarks/results/graph.csv"]) == sorted(
        {"graph", *EVERYWHERE}
    )
    assert folders(["packages/graph/README.md", "packages/core/README.md"]) == FOLDERS
    assert folders(["tests/sr/test_cli.py", "hatch.toml"]) == FOLDERS
    assert folders(["benchmarks/graphs.py"]) == FOLDERS


def test_all_folders_without_a_base() -> None:
    done = subprocess.run(
        [sys.executable, "tools/changed.py", "0" * 40], cwd=ROOT, capture_output=True, text=True
    )
    name, _, value = done.stdout.partition("=")
    assert (name, "core" in json.loads(value)) == ("folders", True)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_there_is(path) -> None:
    """And none may write, but for what says so."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    scripts = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]["default"]["scripts"]
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            for word in re.findall(r"hatch run (\S+)", step.get("run", "")):
                assert word in {*scripts, "python", "uv"}
            for tool in re.findall(r"tools/\w+\.py", step.get("run", "")):
                assert (ROOT / tool).exists()
            assert "${{ github.event" not in step.get("run", ""), "text of strangers in a shell"


def test_constraints_allow_what_the_packages_declare() -> None:
    text = (GITHUB / "constraints.txt").read_text(encoding="utf-8")
    pins = [Requirement(line) for line in text.splitlines() if line and line[0] != "#"]
    pinned = {pin.name.lower().replace("_", "-"): str(pin.specifier)[2:] for pin in pins}
    for name in PACKAGES:
        about = project(name)
        extras = about.get("optional-dependencies", {}).values()
        for text in [*about["dependencies"], *(each for extra in extras for each in extra)]:
            wanted = Requirement(text)
            version = pinned.get(wanted.name.lower().replace("_", "-"))
            assert version is None or wanted.specifier.contains(version), f"{text}: {version}"
    assert {"torch", "numpy", "timm", "torch-geometric"} <= set(pinned)


def test_every_package_says_where_it_lives() -> None:
    for name in PACKAGES:
        about = project(name)
        assert {"Repository", "Documentation", "Changelog", "Issues"} <= set(about["urls"]), name
        kinds = set(about["classifiers"])
        for minor in (11, 12, 13):
            assert f"Programming Language :: Python :: 3.{minor}" in kinds, name
