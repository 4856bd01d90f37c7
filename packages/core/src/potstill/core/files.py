"""Files that are whole or absent: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic"]


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write; on success it replaces ``path`` in one step.

    A reader, or a process that is killed at any moment, sees the old file or the new one, never a
    half. After an exception the temporary file is gone and ``path`` is as before. The folder is
    made when missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic(Path(folder, "a", "rows.csv")) as temporary:
        ...         _ = temporary.write_text("x,y")
        ...     Path(folder, "a", "rows.csv").read_text()
        'x,y'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: matplotlib, numpy and others choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
