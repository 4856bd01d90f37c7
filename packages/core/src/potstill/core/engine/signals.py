"""Signals: SIGTERM and SIGINT end a run after its step, in the main process only."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

__all__ = ["Signals", "Stop", "begin", "drawing"]

KINDS = (signal.SIGTERM, signal.SIGINT)

_TWICE = 0.5  # seconds in which torchrun and timeout may send the same signal a second time

_watching: list[Signals] = []
_workers: WeakSet[BaseProcess] = WeakSet()
_begun: WeakSet[Any] = WeakSet()  # loaders whose persistent workers ignore signals


class Stop(BaseException):
    """Raised out of a validation, which need not be finished before a checkpoint is written."""


class Signals:
    """SIGTERM and SIGINT, collected so that a step can be finished; a context manager.

    A second Ctrl-C does what it did before the block. Outside the main thread nothing is collected.

    Args:
        watch: False leaves the handlers alone.

    Attributes:
        received: Numbers of the signals that came.
    """

    def __init__(self, watch: bool) -> None:
        self.received: list[int] = []
        self._watch = watch and threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}
        self._last = 0.0
        self._raising = False

    def __enter__(self) -> Signals:
        if self._watch:
            self._before = {kind: signal.signal(kind, self._receive) for kind in KINDS}
            _watching.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        if self._watch:
            _watching.remove(self)
            self.restore()

    @contextmanager
    def raising(self, wanted: bool) -> Iterator[None]:
        """Raise `Stop` in the block when a signal comes, or came."""
        if not (self._watch and wanted):
            yield
            return
        self._raising = True
        try:
            if self.received:
                raise Stop
            yield
        finally:
            self._raising = False

    def restore(self) -> None:
        """Put back the handlers of before."""
        for kind, handler in self._before.items():
            signal.signal(kind, handler if handler is not None else signal.SIG_DFL)

    def _receive(self, number: int, frame: object) -> None:
        now = time.monotonic()
        again = number == signal.SIGINT and bool(self.received) and now - self._last > _TWICE
        self.received.append(number)
        self._last = now
        if again:
            self.restore()
            signal.raise_signal(number)
        if self._raising:
            raise Stop


def begin(loader: Any) -> Iterator[Any]:
    """An iterator of ``loader``; its workers, where it has some, leave signals to this process.

    Schedulers and terminals send a signal to every process of a job. A worker that obeys takes the
    batches with it that the step in progress needs.
    """
    if not getattr(loader, "num_workers", 0):
        return iter(loader)
    if getattr(loader, "persistent_workers", False) and loader not in _begun:
        loader._iterator = None  # its workers began before, and obey
        _begun.add(loader)
    init = loader.worker_init_fn
    loader.worker_init_fn = partial(_ignore, init)
    before = set(active_children())
    try:
        with _held():  # nor may one come between the fork and the first line of `_ignore`
            return iter(loader)
    finally:
        loader.worker_init_fn = init
        _workers.update(set(active_children()) - before)


class _Drawing:
    """Whether a batch is being drawn, and whether a process was forked for it."""

    now = forked = False


@contextmanager
def drawing() -> Iterator[None]:
    """Processes that are forked in this block are workers too: of a loader that a source hides."""
    before = set(active_children())
    _Drawing.now = True
    try:
        yield
    finally:
        _Drawing.now = False
        if _Drawing.forked:
            _Drawing.forked = False
            _workers.update(set(active_children()) - before)


def _ignore(init: Callable[[int], object] | None, worker: int) -> None:
    for kind in KINDS:
        signal.signal(kind, signal.SIG_IGN)
    _mask("SIG_UNBLOCK")
    if init is not None:
        init(worker)


@contextmanager
def _held() -> Iterator[None]:
    """Signals wait until the block is over; processes started in it begin that way."""
    _mask("SIG_BLOCK")
    try:
        yield
    finally:
        _mask("SIG_UNBLOCK")


def _mask(how: str) -> None:
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(getattr(signal, how), KINDS)


def _in_parent() -> None:
    _Drawing.forked = _Drawing.now


def _in_child() -> None:
    """Other processes that are forked during a run obey signals as they would without it."""
    if _Drawing.now:
        _watching.clear()
        for kind in KINDS:
            signal.signal(kind, signal.SIG_IGN)
    while _watching:
        _watching.pop().restore()


@atexit.register
def _end() -> None:
    """Workers that are left would be asked by a signal that they ignore, and waited for."""
    for worker in [w for w in _workers if w in active_children()]:
        worker.kill()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_parent=_in_parent, after_in_child=_in_child)
