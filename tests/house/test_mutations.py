"""Files from strangers: a few damaged inputs of every reader; `tools/mutate.py` makes more."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_damaged_files_are_read_or_refused_by_name():
    command = [sys.executable, "-W", "ignore", ROOT / "tools" / "mutate.py", "--count", "25"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("inputs 25") == 44
