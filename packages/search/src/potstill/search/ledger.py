"""The file of a search: what was measured, line by line, so that a killed one goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from potstill.core import CheckpointError, DataError, atomic

__all__ = ["Ledger"]


class Ledger:
    """Results by stage and candidate; each is on the disk before the next is worked out.

    Args:
        path: File of lines of JSON, made when missing; None keeps nothing.
        signature: What the search is of, by name; a file of another one is refused.

    Raises:
        CheckpointError: The file is of another search, which the message tells, or is damaged.
        DataError: It cannot be written.
    """

    def __init__(self, path: Path | None, signature: Mapping[str, Any]) -> None:
        self.path = path
        self._known: dict[tuple[str, str], Any] = {}
        if path is not None and _main():
            self._open(path, signature)
        self._known = _shared(self._known)

    def _open(self, path: Path, signature: Mapping[str, Any]) -> None:
        lines = self._read(path) if path.exists() else []
        wanted = json.loads(json.dumps(signature, default=str))
        if lines:
            before = lines[0] if isinstance(lines[0], dict) else {}
            names = [n for n in {**before, **wanted} if before.get(n) != wanted.get(n)]
            if names:
                told = ", another ".join(
                    f"{n} ({before.get(n, 'absent')}, now {wanted.get(n, 'absent')})" for n in names
                )
                raise CheckpointError(
                    f"suggest: {path.parent} holds a search with another {told}; choose another "
                    "folder, or delete that one"
                )
            try:
                self._known = {(stage, key): value for stage, key, value in lines[1:]}
            except (TypeError, ValueError) as error:
                raise self._damaged(path) from error
        self._write([wanted, *([*at, value] for at, value in self._known.items())])

    def get(self, stage: str, key: str, work: Callable[[], Any], *, together: bool = False) -> Any:
        """The result of ``work()``, from the file where it is there.

        Of several processes the main one works, and tells the others.

        Args:
            stage: Name of the stage.
            key: Name of the candidate.
            work: Gives plain values.
            together: All processes work, since it is work that they share.
        """
        if (stage, key) not in self._known:
            value = json.loads(json.dumps(work())) if together or _main() else None
            if self.path is not None and _main():
                self._append([stage, key, value])
            self._known[stage, key] = _shared(value)
        return self._known[stage, key]

    def _append(self, line: Any) -> None:
        assert self.path is not None
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"suggest: {self.path} could not be written ({error.strerror}); free some space, "
                "and call it again: it goes on here"
            ) from error

    def _write(self, lines: list[Any]) -> None:
        """All anew: a line that was cut off is gone."""
        assert self.path is not None
        with atomic(self.path) as temporary:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def _read(cls, path: Path) -> list[Any]:
        *whole, _cut = path.read_text(encoding="utf-8", errors="replace").split("\n")
        try:
            return [json.loads(line) for line in whole]
        except ValueError as error:
            raise cls._damaged(path) from error

    @staticmethod
    def _damaged(path: Path) -> CheckpointError:
        return CheckpointError(
            f"suggest: {path} must hold the lines of a search, got something else; delete the file "
            "to begin anew"
        )


def _main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _shared(value: Any) -> Any:
    """What the main process has."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
