"""A bounded queue of work, done by one thread, so that a page cannot ask for more than there is."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from potstill.core.errors import PotstillError
from potstill.core.serve.reply import Refused

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["Cancelled", "Piece", "Work"]


class Cancelled(PotstillError):
    """A piece of work that nobody waits for any more."""


class Piece:
    """A piece of work on its way.

    Attributes:
        future: Its result.
    """

    def __init__(self, call: Callable[[Piece], Any]) -> None:
        self.future: Future[Any] = Future()
        self._call = call
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled; a running one ends at its next `check`."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Do not begin, or end at the next `check`; nothing happens to a finished one."""
        self._cancelled.set()
        self.future.cancel()

    def check(self) -> None:
        """To be called between the steps of the work.

        Raises:
            Cancelled: It was cancelled.
        """
        if self.cancelled:
            raise Cancelled("cancelled: nobody waits for it any more")

    def run(self) -> None:
        """Do the work and set the result."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._call(self))
        except Exception as error:  # raised again where the result is asked for
            self.future.set_exception(error)


class Work:
    """One thread that does one piece after another; more than `most` are refused.

    Args:
        most: Pieces that wait or run at a time.
        retry: Seconds after which a refused client may ask again.
    """

    def __init__(self, most: int = 64, retry: int = 1) -> None:
        self._most, self._retry = most, retry
        self._waiting: deque[Piece] = deque()
        self._running: Piece | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="work", daemon=True)
        self._thread.start()

    def admit(self) -> None:
        """Refuse early, before a body is read.

        Raises:
            Refused: The queue is full, or the server is closing (status 503).
        """
        with self._changed:
            self._admit()

    def submit(self, call: Callable[[Piece], Any]) -> Piece:
        """Queue ``call``, a function of its own piece.

        Raises:
            Refused: The queue is full, or the server is closing (status 503).
        """
        piece = Piece(call)
        with self._changed:
            self._admit()
            self._waiting.append(piece)
            self._changed.notify()
        return piece

    async def answer(self, request: Request, call: Callable[[Piece], Any]) -> Any:
        """Wait for the result of ``call``; it is cancelled when the client goes.

        Raises:
            Refused: The queue is full, or the server is closing (status 503).
            Cancelled: The client has gone.
        """
        piece = self.submit(call)
        result = asyncio.wrap_future(piece.future)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
            if result.cancelled():
                raise Refused(503, "the server is closing", self._retry)
            if not result.done():
                gone.result()  # a body that came too late
                raise Cancelled("the client has gone")
            return result.result()
        finally:
            gone.cancel()
            piece.cancel()
            result.cancel()

    def close(self) -> None:
        """Cancel everything and take nothing more; waits for nothing."""
        with self._changed:
            self._closed = True
            for piece in (*self._waiting, *filter(None, [self._running])):
                piece.cancel()
            self._changed.notify()

    def join(self) -> None:
        """Wait for the step that is running when the work was closed."""
        self._thread.join()

    def _admit(self) -> None:
        # Cancelled ones leave here, so that clients that come and go do not pile up.
        self._waiting = deque(piece for piece in self._waiting if not piece.cancelled)
        if self._closed:
            raise Refused(503, "the server is closing", self._retry)
        if len(self._waiting) + (self._running is not None) >= self._most:
            raise Refused(503, f"{self._most} requests are waiting; ask again later", self._retry)

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._running = self._waiting.popleft()
            self._running.run()


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
