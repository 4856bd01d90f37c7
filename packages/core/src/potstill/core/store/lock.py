"""One run at a time in a folder."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from potstill.core.errors import CheckpointError
from potstill.core.files import alive, clear, machine, writing

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["Lock"]

_held: dict[Path, int] = {}  # folder -> thread; a job holds its folder, and `fit` inside it again


class Lock:
    """The right to write into ``folder``, in ``run.lock``; a context manager.

    The operating system holds it, also between machines where the file system can, and gives it
    back when the process dies in whatever way. Where it cannot, host, process and start in the file
    decide: a process that is gone on this machine holds nothing.

    Args:
        folder: Made when missing.

    Raises:
        CheckpointError: Another run writes there; says which.
        DataError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.path = self.folder / "run.lock"
        self._file: int | None = None

    def __enter__(self) -> Lock:
        thread = threading.get_ident()
        if self.folder in _held:
            if _held[self.folder] != thread:
                raise self._refusal({"process": os.getpid(), "host": socket.gethostname()})
            return self
        with writing(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._take()
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, json.dumps(_self()).encode())
        _held[self.folder] = thread
        clear(self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with suppress(OSError):
                self.path.unlink()
            os.close(self._file)
            self._file = None
            del _held[self.folder]

    def _take(self) -> int:
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                owner = _read(file)
                if not _lock(file, owner):
                    raise self._refusal(owner)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file), self.path.stat()):
                        return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # its owner removed it between our two calls

    def _refusal(self, owner: dict[str, Any]) -> CheckpointError:
        began = owner.get("began")
        since = f", since {time.strftime('%Y-%m-%d %H:%M', time.localtime(began))}" if began else ""
        return CheckpointError(
            f"another run writes into {self.folder}: process {owner.get('process', '?')} on "
            f"{owner.get('host', '?')}{since}; wait for it, stop it, or choose another folder (if "
            f"that process is gone, delete {self.path})"
        )


def _lock(file: int, owner: dict[str, Any]) -> bool:
    """Take the lock, or say that ``owner`` has it."""
    try:
        if sys.platform == "win32":
            os.lseek(file, 1 << 30, os.SEEK_SET)  # a locked byte cannot be read
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            # Not flock: workers would inherit it, and keep it when this process is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        pass
    gone = owner.get("machine") == machine() and (
        owner.get("process") == os.getpid() or not alive(int(owner["process"]))
    )
    return not owner or gone


def _self() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "began": time.time(),
        "machine": machine(),
    }


def _read(file: int) -> dict[str, Any]:
    """Who holds it; nothing where the file is of no run."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        found = json.loads(os.read(file, 4096))
        process, began = int(found["process"]), float(found.get("began", 0))
        time.localtime(began)  # of a year that there is
        known = 0 < process < 1 << 31  # as a system numbers them
        return {**found, "process": process, "began": began} if known else {}
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError,
            RecursionError):  # fmt: skip
        return {}
