"""`hatch run new-package demo` gives a package that passes everything, with no edit by hand."""

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import new_package
import pytest
from workspace import ROOT

CHECKS = {
    "tests": "-m pytest -q -p no:cacheprovider tests/demo",
    "house": "-m pytest -q -p no:cacheprovider tests/house "
    "-k '(demo and not new_package) or entry_point or one_floor'",
    "lint": "-m ruff check packages/demo tests/demo benchmarks/demo",
    "format": "-m ruff format --check packages/demo tests/demo benchmarks/demo",
    "spelling": "-m codespell_lib packages/demo docs/tutorials/demo.md docs/api/demo.md",
    "imports": "tools/check_imports.py",
    "dependencies": "tools/check_dependencies.py demo",
    "types": f"tools/check_types.py --cache-dir={ROOT}/.mypy_cache/new-package packages/demo",
    "benchmark": "-m benchmarks demo --quick",
    "docs": "tools/site.py --strict",
}


def run(*words: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository with a new package, whose wheel lies unpacked in ``installed``."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    folder = tmp_path_factory.mktemp("clone")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():  # not one that is about to be removed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    run("tools/new_package.py", "demo", cwd=folder)
    run("-m", "hatchling", "build", "-t", "wheel", "-d", "dist", cwd=folder / "packages/demo")
    [wheel] = folder.glob("packages/demo/dist/*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    known, own = ROOT / ".mypy_cache/3.11", ROOT / ".mypy_cache/new-package/3.11"
    if known.exists() and not own.exists():  # what `hatch run types` has read of torch
        shutil.copytree(known, own)
    return folder


@pytest.mark.slow  # mypy reads torch anew where `hatch run types` did not: half a minute
@pytest.mark.parametrize("name", CHECKS)
def test_a_new_package_passes(clone: Path, name: str) -> None:
    run(
        *shlex.split(CHECKS[name]),
        cwd=clone,
        PYTHONPATH=str(clone / "installed"),
        OMP_NUM_THREADS="1",
    )


@pytest.mark.parametrize("name", ["Demo", "my-demo", "2d", "class", "core", "bench", ""])
def test_a_name_that_cannot_be_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["new_package.py", name])
    monkeypatch.setattr(new_package, "make", lambda name: pytest.fail(f"made {name!r}"))
    with pytest.raises(SystemExit):
        new_package.main()
