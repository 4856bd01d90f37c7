"""Say which folders of tests a change concerns, for the matrix of CI.

python tools/changed.py [BASE]    prints `folders=["graph", "house"]`; all of them without a base

A domain concerns itself and what stands on all packages; the core, and everything that belongs to
no package, concern all.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable

from workspace import DOMAINS, ROOT

EVERYWHERE = ["apps", "benchmarks", "devices", "golden", "house"]
FOLDERS = sorted({"core", *DOMAINS, *EVERYWHERE})
PLACES = re.compile(r"(?:packages|tests|benchmarks(?:/results)?|apps)/(\w+)(?=[/.])")


def folders(paths: Iterable[str]) -> list[str]:
    """Folders below ``tests`` that files at ``paths`` concern."""
    found = set(EVERYWHERE)
    for path in paths:
        place = PLACES.match(path)
        if place is None or place[1] not in DOMAINS:
            return FOLDERS
        found.add(place[1])
    return sorted(found)


def changed(base: str) -> list[str]:
    """Files that differ from ``base``; it must be known here."""
    command = ["git", "diff", "--name-only", f"{base}...HEAD"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")[:-1]


def main() -> int:
    base = sys.argv[1] if len(sys.argv) > 1 else ""
    known = base.strip("0")  # zeros: the branch is new
    print("folders=" + json.dumps(folders(changed(base)) if known else FOLDERS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
