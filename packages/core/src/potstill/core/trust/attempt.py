"""One run of a command, to its end or to a signal, on a disk of any size."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

__all__ = ["Attempt", "Ended", "Signal", "small_disk_problem"]

GRACE = 30.0  # seconds from TERM to KILL, as Slurm and Kubernetes give

# The disk is gone with its namespace, so what lies on it is copied while it is there.
_ON_SMALL_DISK = """
mount -t tmpfs -o size="$1" tmpfs "$2" || exit 99
disk=$2 copy=$3; shift 3
"$@"; code=$?
cp -a "$disk/." "$copy"
exit $code
"""


@dataclass(frozen=True)
class Signal:
    """A signal, and whether all processes get it or the first one only."""

    number: int
    all: bool = True


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: Exit code; the negative number of a signal that it died of.
        work: Seconds from its first change of the folder to its end.
        signalled: True where it was still running at its moment.
        error: Fault of its end, if any.
        said: Last line of standard error.
    """

    code: int
    work: float
    signalled: bool = False
    error: str = ""
    said: str = ""


@dataclass
class Attempt:
    """A command, its folder, and how many processes share it.

    Args:
        words: The command, with its folder in it.
        out: That folder.
        log: File for what it says.
        processes: Number of processes; torchrun starts them where there are several.
        limit: Seconds after which it counts as hanging.
        call: Function of the words to call in a fork of this process instead.
    """

    words: Sequence[str]
    out: Path
    log: Path
    processes: int
    limit: float = 3600.0
    call: Callable[[list[str]], int] | None = None
    _began: float = field(default=0.0, init=False)
    _before: dict[str, int] = field(default_factory=dict, init=False)

    def finish(self) -> Ended:
        """Run it to its end."""
        with self._started() as process:
            return self._wait(process)

    def signalled(self, kind: Signal, delay: float) -> Ended:
        """Run it, and send ``kind`` once it has worked for ``delay`` seconds."""
        with self._started() as process:
            if not self._works(process, delay):
                return self._wait(process)
            family = _family(process.pid)
            for member in family if kind.all else family[:1]:
                _send(member, kind.number)
            ended = self._wait(process, GRACE)
            left = [member for member in family if not _dead(member)]
            for member in left:
                _send(member, signal.SIGKILL)
            error = ended.error or (f"{len(left)} processes outlived it" if left else "")
            return replace(ended, signalled=True, error=error)

    def within(self, file_size: int) -> Ended:
        """Run it where no file may be larger than ``file_size`` bytes."""
        import resource

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

        with self._started(limited) as process:
            return self._wait(process)

    def on_disk_of(self, size: int) -> Ended:
        """Run it in a new folder on a disk of ``size`` bytes; what it wrote is copied back."""
        copy = self.out.with_name(f"{self.out.name}-copy")
        for folder in (self.out, copy):
            folder.mkdir(parents=True, exist_ok=True)
        words = [*_NAMESPACE, "sh", "-c", _ON_SMALL_DISK, "sh", str(size), str(self.out), str(copy)]
        with self._started(words=[*words, *self._command()]) as process:
            ended = self._wait(process)
        self.out.rmdir()  # where the disk was mounted
        copy.rename(self.out)
        return ended

    def beside(self, other: Attempt, delay: float) -> tuple[Ended, Ended | None]:
        """Stop it after ``delay`` seconds of work while ``other`` runs, then let it go on.

        Returns:
            How both ended; None for the other one where this one was done before.
        """
        with self._started() as process:
            if not self._works(process, delay):
                return self._wait(process), None
            family = _family(process.pid)
            for member in family:
                _send(member, signal.SIGSTOP)
            try:
                second = other.finish()
            finally:
                for member in family:
                    _send(member, signal.SIGCONT)
            return self._wait(process), second

    def _command(self) -> list[str]:
        if self.processes == 1:
            return [*self.words]
        return [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python",
            "--nproc-per-node", str(self.processes), *self.words,
        ]  # fmt: skip

    @contextmanager
    def _started(
        self, prepare: Callable[[], None] = lambda: None, words: Sequence[str] = ()
    ) -> Iterator[Process]:
        """The process; with all that it started it is gone when the block ends."""
        self._before, self._began = _state(self.out), 0.0
        with self.log.open("wb") as log:
            process = (
                Process.of_command(words or self._command(), log, prepare)
                if words or self.call is None
                else Process.of_call(self.call, [*self.words], self.processes, log, prepare)
            )
        try:
            yield process
        finally:
            for member in _family(process.pid):
                _send(member, signal.SIGKILL)
            process.wait()

    def _works(self, process: Process, delay: float) -> bool:
        """Wait until it has worked for ``delay`` seconds; whether it still does."""
        start = time.monotonic()
        while process.code() is None:
            now = time.monotonic()
            if not self._began and _state(self.out) != self._before:
                self._began = now
            if (self._began and now - self._began >= delay) or now - start > self.limit:
                return True
            time.sleep(0.005)
        return False

    def _wait(self, process: Process, limit: float | None = None) -> Ended:
        start, limit = time.monotonic(), limit or self.limit
        while process.code() is None and time.monotonic() - start < limit:
            if not self._began and _state(self.out) != self._before:
                self._began = time.monotonic()
            time.sleep(0.005)
        work = time.monotonic() - self._began if self._began else 0.0
        code = process.code()
        text = self.log.read_text(errors="replace").strip()
        said = text.splitlines()[-1] if text else ""
        if code is None:
            return Ended(0, work, error=f"still ran after {limit:.0f} s", said=said)
        error = ""
        # torchrun shows a traceback of its own whatever happened below it
        if "Traceback (most recent call last)" in text and self.processes == 1 and code > 0:
            error = f"ended in a traceback: {said}"
        if code < 0 and -code in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
            error = f"died of {signal.Signals(-code).name}"
        return Ended(code, work, error=error, said=said)


@dataclass(frozen=True)
class Process:
    """A process, however it was started.

    Attributes:
        pid: Its number.
        code: Its exit code, None while it runs.
        wait: Waits for its end.
    """

    pid: int
    code: Callable[[], int | None]
    wait: Callable[[], Any]

    @classmethod
    def of_command(cls, words: Sequence[str], log: Any, prepare: Callable[[], None]) -> Process:
        """A program."""
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=prepare
        )
        return cls(process.pid, process.poll, process.wait)

    @classmethod
    def of_call(
        cls, call: Callable[[list[str]], int], words: list[str], count: int, log: Any,
        prepare: Callable[[], None],
    ) -> Process:  # fmt: skip
        """A fork of this process, with all that it has imported."""

        def main() -> None:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1) for stream in (1, 2))
            prepare()
            sys.exit(call(words) if count == 1 else _with_torchrun(call, words, count))

        process = get_context("fork").Process(target=main)
        process.start()
        assert process.pid is not None
        return cls(process.pid, lambda: process.exitcode, process.join)


def _with_torchrun(call: Callable[[list[str]], int], words: list[str], count: int) -> int:
    """Call it in ``count`` processes, watched by torchrun's own agent."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1, 1, count, run_id=str(os.getpid()), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, _rank)(call, words)
    return 0


def _rank(call: Callable[[list[str]], int], words: list[str]) -> None:
    # A process of torchrun is a new program. A fork would keep the handlers of the agent, whose
    # exception is lost where Python ignores exceptions (callbacks of weak references).
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if code := call(words):
        sys.exit(code)


_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def small_disk_problem(folder: Path) -> str:
    """Why no small disk can be mounted without rights on this machine; nothing where it can."""
    if shutil.which("unshare") is None:
        return "unshare of util-linux is not installed"
    words = [*_NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _state(folder: Path) -> dict[str, int]:
    """When each file below ``folder`` was changed; files may go away meanwhile."""
    found: dict[str, int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found[name] = max(os.stat(Path(parent, name)).st_mtime_ns, found.get(name, 0))
            except OSError:
                continue
    return found


def _family(pid: int) -> list[Any]:
    """The process and all below it; torchrun gives each worker a session of its own."""
    import psutil

    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _send(member: Any, number: int) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        member.send_signal(number)


def _dead(member: Any) -> bool:
    """Gone, or a zombie; a child may need a moment after its parent."""
    import psutil

    try:
        return member.status() == psutil.STATUS_ZOMBIE or member.wait(timeout=5) is None
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
