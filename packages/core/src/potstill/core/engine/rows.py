"""Rows of a run that stay on the disk: only where each one begins is kept in memory."""

from __future__ import annotations

import json
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

from potstill.core.errors import CheckpointError, reading

__all__ = ["Row", "Rows"]

Row = dict[str, float]


class Rows(Sequence[Row]):
    """A sequence of rows, each read from its file when it is asked for: eight bytes of memory each.

    It compares equal to a list of the same rows, ``+`` gives a list, and it is pickled as one.

    Args:
        path: A file with one row of JSON on each line; None for a temporary file that goes with
            the sequence.
        count: Number of first rows that count; the rest is cut off.

    Raises:
        CheckpointError: The file has fewer rows, or what is no row.
    """

    def __init__(self, path: Path | None, count: int = 0) -> None:
        self.path = path
        self._ends = array("q", [0])  # of the rows, with 0 before the first
        if path is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
            weakref.finalize(self, self._file.close)
            return
        path.touch()
        with reading(path, "a row of JSON on each line", CheckpointError), path.open("r+b") as file:
            for line in file:
                if len(self) == count or not line.endswith(b"\n"):
                    break
                json.loads(line)
                self._ends.append(self._ends[-1] + len(line))
            file.truncate(self._ends[-1])
        if len(self) < count:
            raise CheckpointError(
                f"fit: {path} has {len(self)} rows, the checkpoint knows {count}; restore the "
                "file, or start in another folder"
            )

    def written(self, row: Row, file: IO[bytes] | None = None) -> None:
        """Put ``row`` behind the others, through ``file`` where that is the file of this path."""
        line = json.dumps(row).encode() + b"\n"
        file = file or self._file
        file.seek(self._ends[-1])
        file.write(line)
        file.flush()
        self._ends.append(self._ends[-1] + len(line))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        with self._reading() as file:
            file.seek(self._ends[at])
            row: Row = json.loads(file.read(self._ends[at + 1] - self._ends[at]))
        return row

    def __iter__(self) -> Iterator[Row]:
        with self._reading() as file:
            for begin, end in zip(self._ends, self._ends[1:], strict=False):
                file.seek(begin)  # several may read at a time
                yield json.loads(file.read(end - begin))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Iterable[Row]) -> list[Row]:
        return [*self, *other]

    def __radd__(self, other: Iterable[Row]) -> list[Row]:
        return [*other, *self]

    def __repr__(self) -> str:
        return f"Rows({len(self)} of {self.path or 'a temporary file'})"

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def _reading(self) -> AbstractContextManager[IO[bytes]]:
        return nullcontext(self._file) if self.path is None else self.path.open("rb")
