"""Connections of uvicorn that wait for a limited time, in limited number."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["connections"]


def connections(patience: float, most: int) -> type[H11Protocol]:
    """A protocol for one server.

    Args:
        patience: Seconds until a request must be there whole without its body, and in which a
            client must take each part of an answer.
        most: Connections at a time; one more ends the one that has waited longest without a
            request, so that silent clients do not keep others out.
    """
    waiting: dict[Connection, asyncio.TimerHandle] = {}

    class Connection(H11Protocol):
        """A connection; uvicorn alone would wait for ever for a request, and for its reader."""

        _stuck: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # None of the answer may wait unseen: what is not taken stops the writer.
            transport.set_write_buffer_limits(high=0)
            self._look()
            if len(self.connections) > most:
                oldest = next(iter(waiting))
                oldest._forget()
                oldest.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)  # also resumes writing

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(patience, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stuck is not None:
                self._stuck.cancel()
                self._stuck = None

        def _look(self) -> None:
            """Wait for a request, unless one is being answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self not in waiting and not self.transport.is_closing():
                waiting[self] = self.loop.call_later(patience, self.transport.abort)

        def _forget(self) -> None:
            timer = waiting.pop(self, None)
            if timer is not None:
                timer.cancel()

    return Connection
