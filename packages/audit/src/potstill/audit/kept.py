"""Pieces of work whose results are kept in a folder, so that what was done is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from potstill.core import CheckpointError, atomic

__all__ = ["Kept"]


class Kept:
    """A folder with one JSON file for each finished piece; without a folder nothing is kept.

    Numbers come back bit for bit, and so does a table that is made of them.

    Args:
        folder: The folder, made when missing.
        about: What the work is of; a folder of other work is refused.

    Raises:
        CheckpointError: The folder holds other work.
    """

    def __init__(self, folder: Path | str | None, about: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        path, wanted = self.folder / "about.json", json.loads(json.dumps(about))
        found = _read(path)
        if found is None:
            _write(path, wanted)
        elif found != wanted:
            names = [n for n in {**found, **wanted} if found.get(n) != wanted.get(n)]
            raise CheckpointError(
                f"{self.folder}: must be empty or hold the same work, got another "
                f"{', another '.join(sorted(names))}; choose another folder, or delete that one"
            )

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of a piece, which ``make`` computes unless it is there."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.json"
        found = _read(path)
        if found is None:
            found = json.loads(json.dumps(make()))
            _write(path, found)
        return found

    def has(self, name: str) -> bool:
        """Whether a piece is there."""
        return self.folder is not None and _read(self.folder / f"{name}.json") is not None


def _read(path: Path) -> Any:
    """What a file holds; None where there is none, or a damaged one: it is made again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")
