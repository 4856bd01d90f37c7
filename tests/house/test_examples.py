"""The examples run, one after another in this process; each family and scheme has one."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from workspace import DOMAINS, ROOT

FOLDER = ROOT / "docs" / "examples"
PROGRAMS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "speculative_digits")
CORE = ROOT / "packages" / "core" / "src" / "potstill" / "core"
ELSEWHERE = {  # which program uses a module, where its name does not say so
    "trilateral": "schemes_fusion",
    "onpolicy": "speculative_digits",  # a longer one: tests/apps/test_speculative.py
}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path, monkeypatch, capsys) -> None:
    if path.stem.startswith("flow"):
        pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert f"python docs/examples/{path.name}\n" in text, "how it is started stands in it"
    with torch.random.fork_rng():
        runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip(), "it shows something"
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def exported(folder: str) -> dict[str, set[str]]:
    """Public names by the module that defines them."""
    stub = (CORE / folder / "__init__.pyi").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for module, name in re.findall(r"^from \.(\w+) import \w+ as (\w+)$", stub, re.MULTILINE):
        found.setdefault(module, set()).add(name)
    return found


@pytest.mark.parametrize("folder", ["criteria", "schemes"])
def test_every_family_and_scheme_has_an_example(folder: str) -> None:
    for module, public in exported(folder).items():
        path = FOLDER / f"{ELSEWHERE.get(module, f'{folder}_{module}')}.py"
        assert path.exists(), f"{folder}/{module}.py has no example"
        words = set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
        assert public & words, f"{path.name} uses nothing of {folder}/{module}.py"


def test_every_domain_has_an_example() -> None:
    assert {path.stem.partition("_")[0] for path in PROGRAMS} == {"criteria", "schemes", *DOMAINS}
