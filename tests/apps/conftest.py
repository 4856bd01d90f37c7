"""What the tests of the apps share: the apps themselves, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _root_on_path(monkeypatch):
    """As ``python -m apps.tour`` in the root has it."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="session")
def run_app():
    """Run ``python -m <module> ...`` in the root, as a user does, without any data folder."""

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env={**os.environ, "POTSTILL_DATA": "/nonexistent", "COLUMNS": "140", **env},
            capture_output=True,
            text=True,
        )

    return run
