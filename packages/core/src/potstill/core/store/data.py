"""Data: where it lies, how it gets there, and which bytes it was.

Everything lies under one root: the folder in ``POTSTILL_DATA``, else the platform's cache folder.
``locate`` finds a file there, fetches it when a source is known, or says what to do.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from potstill.core.errors import DataError

__all__ = ["MapDataset", "download", "fingerprint", "locate", "root", "sha256"]

_CHUNK = 1 << 18


@runtime_checkable
class MapDataset(Protocol):
    """Anything with a length that is indexed by integers."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def root() -> Path:
    """The folder of all data: ``POTSTILL_DATA``, else ``potstill`` in the platform's cache.

    The cache is ``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS, and
    ``%LOCALAPPDATA%`` on Windows. The folder need not exist.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, POTSTILL_DATA="/srv/potstill"):
        ...     root().as_posix()
        '/srv/potstill'
    """
    chosen = os.environ.get("POTSTILL_DATA", "").strip()
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        cache = Path(local) if local else Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        xdg = os.environ.get("XDG_CACHE_HOME")
        cache = Path(xdg) if xdg else Path.home() / ".cache"
    return cache / "potstill"


def locate(
    relative: str | os.PathLike[str],
    *,
    url: str | None = None,
    sha256: str | None = None,
    hint: str = "",
) -> Path:
    """Find a file or folder of the data root; fetch it when a source is given.

    Args:
        relative: Path below the root, e.g. ``"sr/Set5"``.
        url: Address of the file, for when it is missing; needs ``sha256``.
        sha256: Hex digest of the file at ``url``.
        hint: Advice for when it is missing, e.g. where to get it.

    Returns:
        The path, which exists.

    Raises:
        DataError: It is missing and cannot be fetched, or ``relative`` leaves the root.
    """
    below = Path(relative)
    if below.is_absolute() or ".." in below.parts:
        raise DataError(f"locate: relative must be a path below the data root, got {relative!s}")
    path = root() / below
    if path.exists():
        return path
    if url is not None:
        if sha256 is None:
            raise DataError(f"locate: a download needs the sha256 of {url}, got None")
        return download(url, path, sha256)
    known = "is" if os.environ.get("POTSTILL_DATA", "").strip() else "is not set, so the root is"
    raise DataError(
        f"locate: {path} must exist, got nothing there; POTSTILL_DATA {known} {root()}; "
        + (hint or f"set POTSTILL_DATA to the folder that holds {below.as_posix()}")
    )


def download(
    url: str,
    to: str | os.PathLike[str],
    sha256: str,
    *,
    progress: bool = True,
    attempts: int = 4,
    timeout: float = 30.0,
) -> Path:
    """Fetch a file, continue where an earlier attempt stopped, and verify it.

    The bytes go to ``.<name>.<digest>.part`` beside the target and are renamed once their digest is
    right, so the target is whole or absent. A file that is there and right is not fetched again.
    Processes that want the same file wait for each other.

    Args:
        url: ``http`` or ``https`` address.
        to: The target file.
        sha256: Expected hex digest.
        progress: Show a bar when standard error is a terminal.
        attempts: Connections to try; each continues the previous one.
        timeout: Seconds without a byte before a connection counts as dead.

    Returns:
        The path ``to``.

    Raises:
        DataError: The server refuses or stays unreachable (what was fetched is kept for the next
            try), the digest is wrong, or the target cannot be written.
    """
    from filelock import FileLock

    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DataError(f"download: sha256 must be 64 hex digits, got {sha256!r}")
    if not re.match(r"https?://", url):
        raise DataError(f"download: url must start with http:// or https://, got {url!r}")
    to, sha256 = Path(to), sha256.lower()
    part = to.with_name(f".{to.name}.{sha256[:12]}.part")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(part.with_suffix(".lock")):
            if not (to.is_file() and _digest(to) == sha256):
                _complete(url, part, sha256, progress, attempts, timeout)
                os.replace(part, to)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"download: {to} must be writable, got {error}") from error
    with suppress(OSError):  # whoever still waits for the lock will find the file complete
        part.with_suffix(".lock").unlink()
    return to


def _complete(
    url: str, part: Path, sha256: str, progress: bool, attempts: int, timeout: float
) -> None:
    """Bring ``part`` to the expected content; resumed bytes get one second chance from zero."""
    trouble = "nothing was tried"
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(0.2 * 2**attempt, 5.0))
        resumed = part.exists() and part.stat().st_size > 0
        try:
            whole = _receive(url, part, progress, timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing after our last byte: complete, or not this file
                whole = True
            elif error.code in (408, 429) or error.code >= 500:
                trouble = f"HTTP status {error.code}"
                continue
            else:
                raise DataError(
                    f"download: {url} must be readable, got HTTP status {error.code}; is the "
                    "address still right?"
                ) from error
        except (OSError, http.client.HTTPException) as error:
            trouble = str(error) or type(error).__name__
            continue
        if not whole:
            trouble = f"the connection ended after {part.stat().st_size} bytes"
            continue
        digest = _digest(part)
        if digest == sha256:
            return
        part.unlink()
        if not resumed:
            raise DataError(
                f"download: {url} must have sha256 {sha256}, got {digest}; the file changed at its "
                "source or on the way, and was deleted"
            )
        trouble = "the continued file had another digest, so it was started again"
    raise DataError(
        f"download: {url} must be reachable, got {trouble} after {attempts} attempts; "
        f"what was fetched is kept in {part}, try again"
    )


def _receive(url: str, part: Path, progress: bool, timeout: float) -> bool:
    """Append what the server sends to ``part``; tell whether everything came."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "potstill"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=timeout) as response:
        if response.status != 206:  # a server without ranges sends the file from its start
            have = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with (
            part.open("r+b" if have else "wb") as file,
            _bar(part, have, total, progress) as advance,
        ):
            file.seek(have)
            file.truncate()
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                advance(len(chunk))
            size = file.tell()
    return total is None or size == total


@contextmanager
def _bar(part: Path, have: int, total: int | None, shown: bool) -> Iterator[Callable[[int], None]]:
    if not (shown and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    name = part.name[1:].rsplit(".", 2)[0]
    columns = (f"[bold]{name}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, completed=have)
        yield lambda count: progress.advance(task, count)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, or of a folder: of its files' sorted relative paths and digests.

    Raises:
        DataError: The path does not exist.
    """
    path = Path(path)
    if path.is_file():
        return _digest(path)
    if not path.is_dir():
        raise DataError(f"sha256: path must exist, got {path}")
    files = sorted(
        (file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file()
    )
    total = hashlib.sha256()
    for name, file in files:
        total.update(f"{_digest(file)}  {name}\n".encode())
    return total.hexdigest()


def fingerprint(*values: Any) -> str:
    """SHA-256 of values in memory: tensors, arrays, plain values, and nests of them.

    The dtype and shape count, the device and strides do not. Mappings are hashed in the order of
    their keys. Objects with ``to_dict()`` (a PyG ``Data``) are hashed as that mapping. Use it for
    the provenance of data that was generated or preprocessed.

    Returns:
        64 hex digits; the first 12 are plenty for a table.

    Raises:
        DataError: A value of a type whose bytes are not defined (sets, arbitrary objects).

    Example:
        >>> import torch
        >>> x = torch.arange(6.0).reshape(2, 3)
        >>> fingerprint(x) == fingerprint(x.T.contiguous().T)
        True
        >>> fingerprint(x) == fingerprint(x.double())
        False
    """
    total = hashlib.sha256()
    _feed(total, values)
    return total.hexdigest()


def _feed(total: Any, value: Any) -> None:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        dense = value.detach().cpu().contiguous()
        total.update(f"tensor {dense.dtype} {tuple(dense.shape)};".encode())
        total.update(dense.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        total.update(f"array {value.dtype.str} {value.shape};".encode())
        total.update(np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | Path):
        total.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, Mapping):
        total.update(f"mapping {len(value)};".encode())
        for key in sorted(value, key=str):
            _feed(total, str(key))
            _feed(total, value[key])
    elif isinstance(value, Sequence):
        total.update(f"sequence {len(value)};".encode())
        for item in value:
            _feed(total, item)
    elif hasattr(value, "to_dict"):
        _feed(total, value.to_dict())
    else:
        raise DataError(
            f"fingerprint: value must be a tensor, an array, a plain value or a nest of them, got "
            f"{type(value).__name__}"
        )
