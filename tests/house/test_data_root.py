"""A test finds the data that it names, nothing else, and skips where they are missing."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]

PROBE = """
from potstill.core.store.data import root
from potstill.core.testing import requires_data

def test_of_no_data():
    assert not root().exists()

@requires_data("sr/Set5", "sr/Set5/LR", "graph")
def test_of_some_data():
    assert (root() / "sr/Set5/LR/a.png").exists()
    assert sorted(p.name for p in root().glob("*/*")) == ["Cora", "Set5"]

@requires_data("sr/Set5", "sr/Set14")
def test_of_missing_data():
    raise AssertionError("not skipped")
"""


def test_a_test_sees_the_data_that_it_names(tmp_path: Path) -> None:
    for name in ("sr/Set5/LR/a.png", "sr/T91/b.png", "graph/Cora/c", "vision/d"):
        path = tmp_path / "whole" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "test_probe.py").write_text(PROBE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(TESTS.parent / "pytest.toml"), "-p", "conftest",
         "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_probe.py"],
        cwd=tmp_path,
        env={**os.environ, "POTSTILL_DATA": "whole", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert "2 passed, 1 skipped" in done.stdout, done.stdout[-3000:] + done.stderr
    assert "needs sr/Set14 below whole (set POTSTILL_DATA)" in done.stdout
