"""Files: read below a folder or out of a zip file, and written so that they are whole or absent."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.core.errors import DataError

__all__ = ["Files", "atomic"]


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


class Files(Sequence[str]):
    """The files below a folder, or in a zip file: their names, sorted, and their bytes.

    Hidden files are left out, and links to folders are followed.

    It can be pickled and forked: each process that reads opens the archive for itself.

    Args:
        source: A folder, or a ``.zip`` file, optionally with a folder inside:
            ``images.zip/train``.
        suffixes: Endings that are wanted, in lower case, e.g. ``(".png", ".jpg")``; all by default.

    Raises:
        DataError: Nothing there, or an archive that cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.TXT").write_text("first")
        ...     _ = Path(folder, "b.csv").write_text("second")
        ...     files = Files(folder, (".txt",))
        ...     list(files), files.read("a.TXT")
        (['a.TXT'], b'first')
    """

    def __init__(
        self, source: str | os.PathLike[str], suffixes: str | tuple[str, ...] = ""
    ) -> None:
        source = Path(source)
        paths = (source, *source.parents)
        zips = (path for path in paths if path.suffix == ".zip" and path.is_file())
        self._archive = next(zips, None)
        self._handles: dict[int, zipfile.ZipFile] = {}
        if self._archive is None and not source.is_dir():
            raise DataError(f"Files: {source} must be a folder or a .zip file, got nothing there")
        self._folder = source if self._archive is None else source.relative_to(self._archive)
        self._names = sorted(name for name in self._all() if name.lower().endswith(suffixes))

    def read(self, name: str) -> bytes:
        """Content of the file called ``name``.

        Raises:
            DataError: It is not there, or cannot be read.
        """
        path = self._folder / name
        try:
            if self._archive is None:
                return path.read_bytes()
            return self._zip().read(path.as_posix())
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"Files: {name} must be readable, got {error}") from error

    def _all(self) -> Iterator[str]:
        names = self._below() if self._archive is None else self._inside()
        for name in names:
            # Hidden files are what systems and killed writers leave behind.
            if not any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
                yield name

    def _below(self) -> Iterator[str]:
        """Names below a folder; links to folders are followed, once each."""
        seen = set()
        for at, folders, files in os.walk(self._folder, followlinks=True):
            real = os.path.realpath(at)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield from (Path(at, file).relative_to(self._folder).as_posix() for file in files)

    def _inside(self) -> Iterator[str]:
        """Names in the archive."""
        prefix = "" if self._folder == Path() else f"{self._folder.as_posix()}/"
        for name in self._zip().namelist():
            if name.startswith(prefix) and not name.endswith("/"):
                yield name.removeprefix(prefix)

    def _zip(self) -> zipfile.ZipFile:
        """One handle per process: forked workers must not share a file position."""
        assert self._archive is not None
        if os.getpid() not in self._handles:
            try:
                self._handles = {os.getpid(): zipfile.ZipFile(self._archive)}
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(
                    f"Files: {self._archive} must be a zip file, got {error}; was it copied whole?"
                ) from error
        return self._handles[os.getpid()]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._names[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}
