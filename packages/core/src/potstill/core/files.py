"""Files: read below a folder or out of a zip file, and written so that they are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from potstill.core.errors import DataError, PotstillError, reading

__all__ = [
    "Files",
    "alive",
    "atomic",
    "clear",
    "is_leftover",
    "machine",
    "reserve",
    "staging",
    "temporary_for",
    "writing",
]

_MARK = ".writing-"
_NAME = re.compile(r"\.writing-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-")
_OLD = 24 * 3600.0  # seconds after which a file of another machine is a leftover
_REFUSED = (
    errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    getattr(errno, "EDQUOT", errno.ENOSPC),
)  # fmt: skip

_LARGEST = 1 << 28  # bytes of one file in an archive: a megabyte can unpack to a gigabyte

_MEMBERS = 5_000_000  # of an archive; each takes half a kilobyte of memory

_mine: set[str] = set()  # what this process writes at the moment
_cleared: set[Path] = set()


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write; on success it replaces ``path`` in one step.

    A reader, or a process that is killed at any moment, sees the old file or the new one, never a
    half. After an exception the temporary file is gone and ``path`` is as before; what a killed
    process left is removed by the next one that writes into the folder. The folder is made when
    missing.

    Raises:
        DataError: The disk is full, a quota or limit is reached, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic(Path(folder, "a", "rows.csv")) as temporary:
        ...         _ = temporary.write_text("x,y")
        ...     Path(folder, "a", "rows.csv").read_text()
        'x,y'
    """
    path = Path(path)
    temporary = temporary_for(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _cleared:
            _cleared.add(path.parent)
            clear(path.parent)
        _mine.add(temporary.name)
        try:
            yield temporary
            with temporary.open("rb+") as file:  # Windows syncs only what is open for writing
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        finally:
            _mine.discard(temporary.name)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give a temporary folder inside ``folder``, for files that belong together.

    Move them to their places at the end of the block; afterwards the temporary folder is gone.

    Raises:
        DataError: As `atomic`.
    """
    temporary = temporary_for(folder / "files")
    with writing(temporary):
        folder.mkdir(parents=True, exist_ok=True)
        clear(folder)
        _mine.add(temporary.name)
        try:
            temporary.mkdir()
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _mine.discard(temporary.name)


@contextmanager
def writing(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn errors of a disk that is full or cannot be written into one of ours.

    Args:
        path: File to write.
        needed: Bytes that it takes, where that is known.

    Raises:
        DataError: Says what happened to ``path``, and how much space there is.
    """
    try:
        yield
    except PotstillError:
        raise
    except Exception as error:
        number = _number(error)
        named = Path(getattr(error, "filename", None) or path)
        near = path.parent in (named, *named.parents) or named in path.parents
        if number not in _REFUSED or not near:
            raise
        size = f"{needed / 1e6:,.1f} MB are needed, " if needed else ""
        raise DataError(
            f"could not write {path}: {os.strerror(number)}; {size}{_free(path)}; free some space "
            "or choose another folder (what was there before is as it was)"
        ) from error


def _number(error: Exception) -> int:
    """The system's number of an error, from libraries that only have it in their message too."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if found := re.search(r"os error (\d+)", text):  # safetensors
        return int(found[1])
    short = r"requested and \d+ written|PytorchStreamWriter failed|file write failed|unexpected pos"
    return errno.ENOSPC if re.search(short, text) else 0  # numpy; torch


def _free(path: Path) -> str:
    there = next(
        folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir()
    )
    return f"{shutil.disk_usage(there).free / 1e6:,.1f} MB are free in {there}"


def reserve(path: Path, size: int) -> None:
    """Have the disk set ``size`` bytes of a file aside, which a memory map does not.

    A page of a map that finds no space kills the process with SIGBUS.

    Raises:
        OSError: There is not so much space.
    """
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for at in range(0, size, 1 << 20):  # what is there already is written again
            file.seek(at)
            held = file.read(min(1 << 20, size - at))
            file.seek(at)
            file.write(held.ljust(min(1 << 20, size - at), b"\0"))
        os.fsync(file.fileno())


def temporary_for(path: Path) -> Path:
    """A name beside ``path`` that no other process uses, on any machine, and that says whose it is.

    The suffix stays: matplotlib, numpy and others choose the format by it.
    """
    token = uuid.uuid4().hex[:8]
    return path.with_name(f"{_MARK}{machine()}-{os.getpid()}-{token}-{path.stem[:40]}{path.suffix}")


def is_leftover(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is named as what is being written, or what a killed writer left.

    Example:
        >>> is_leftover("images/.writing-0a1b2c3d-1-4e5f6a7b-cat.png"), is_leftover("cat.png")
        (True, False)
    """
    return Path(path).name.startswith(_MARK)


def clear(folder: Path) -> None:
    """Remove what writers that are gone have left in ``folder``."""
    for path in folder.glob(f"{_MARK}*"):
        with suppress(OSError):
            if _is_abandoned(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_abandoned(path: Path) -> bool:
    found = _NAME.match(path.name)
    if found and found[1] == machine():
        pid = int(found[2])
        if not (path.name in _mine if pid == os.getpid() else alive(pid)):
            return True
    return time.time() - path.stat().st_mtime > _OLD


def machine() -> str:
    """Eight digits that tell machines and containers apart: in each container a process is 1."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()


def alive(pid: int) -> bool:
    """Whether there is a process ``pid`` on this machine; True where that cannot be known."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
        self.source = source = Path(source)
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
            DataError: It is not there, cannot be read, or is larger than 256 MiB in an archive.
        """
        path = self._folder / name
        with reading(self._archive or path, f"readable ({name})"):
            if self._archive is None:
                return path.read_bytes()
            member = self._zip().getinfo(path.as_posix())
            if member.file_size > _LARGEST:  # and no more than it says is unpacked
                raise DataError(
                    f"Files: {name} in {self._archive} must unpack to at most {_LARGEST:,} bytes, "
                    f"got {member.file_size:,}; unpack the archive into a folder"
                )
            return self._zip().read(member)

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
            wanted = name.startswith(prefix) and not name.endswith("/")
            if wanted and not is_leftover(name):
                yield name.removeprefix(prefix)

    def _zip(self) -> zipfile.ZipFile:
        """One handle per process: forked workers must not share a file position."""
        assert self._archive is not None
        if os.getpid() not in self._handles:
            with reading(self._archive, "a zip file"):
                opened = zipfile.ZipFile(self._archive)
            if len(opened.filelist) > _MEMBERS:
                raise DataError(
                    f"Files: {self._archive} must have at most {_MEMBERS:,} members, got "
                    f"{len(opened.filelist):,}; unpack it into a folder"
                )
            self._handles = {os.getpid(): opened}
        return self._handles[os.getpid()]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._names[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}
