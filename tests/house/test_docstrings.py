"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
from pathlib import Path

import pytest
from workspace import PACKAGES, ROOT

WITH_EXAMPLES = [
    ".".join(
        path.relative_to(ROOT / "packages" / package / "src").with_suffix("").parts
    ).removesuffix(".__init__")
    for package in PACKAGES
    for path in sorted((ROOT / "packages" / package / "src").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("potstill"):
            raise
        pytest.skip(f"{name} is a backend that needs {missing.name}")
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    tests = doctest.DocTestFinder(exclude_empty=True).find(module)
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0, f"{name}: no example was found"
