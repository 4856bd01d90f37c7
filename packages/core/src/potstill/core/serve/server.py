"""A server for local pages, on Starlette and uvicorn."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.core.errors import BackendError, ConfigError, PotstillError
from potstill.core.serve.guard import Guard, refusal
from potstill.core.serve.reply import Events, Page, Refused
from potstill.core.serve.work import Cancelled, Work

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["Server"]

Reply = Page | Events | Path | Mapping[str, Any]
Handler = Callable[["Request"], Awaitable[Reply]]


class Server:
    """Answers requests at an address, which is taken at once and listened at in `run`.

    Only callers are answered that ask by a name of this machine and that are this page or no page
    at all; bodies, queues, connections and waiting have limits; nothing is answered without
    headers that forbid foreign scripts and frames.

    Args:
        host: Name or address to listen at, and by which to be asked, beside ``localhost``. One that
            other machines reach ("0.0.0.0") lets them ask by any address in figures and by
            this machine's name.
        port: 0 takes a free one.
        limit: Bytes of a body; four times as many are held at a time.
        patience: Seconds until a request must be there, twelve times that for its body, and in
            which a client must take each part of an answer.
        most: Connections at a time.

    Attributes:
        address: ``http://host:port``.

    Raises:
        BackendError: Starlette or uvicorn is missing.
        ConfigError: The address is taken, or is none of this machine.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        limit: int = 2**20,
        patience: float = 10.0,
        most: int = 256,
    ) -> None:
        _require()
        self._socket = _bound(host, port)
        self._limit, self._patience, self._most = limit, patience, most
        self._names = {"localhost", "127.0.0.1", "::1", host.lower()}
        self._shared = not ipaddress.ip_address(self._socket.getsockname()[0]).is_loopback
        if self._shared:
            self._names.add(socket.gethostname().lower())
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        """Give the address back."""
        self._socket.close()

    def run(self, routes: Mapping[str, Handler], work: Work) -> None:
        """Answer until Ctrl-C or SIGTERM; then cancel the work and return.

        Args:
            routes: By method and path ("GET /jobs/{number}"), a coroutine of Starlette's request.
                It returns a `Page`, `Events`, a file or a mapping to send as JSON; a `Refused`
                that it raises is answered with its status, any other error of ours with 400.
            work: Cancelled at the end.
        """
        server = self._uvicorn(routes, work)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            server.run([self._socket])
        except KeyboardInterrupt:  # uvicorn ends in order, then sends itself the signal again
            pass
        finally:
            signal.signal(signal.SIGTERM, before)
            work.close()
            work.join()

    @contextmanager
    def background(self, routes: Mapping[str, Handler], work: Work) -> Iterator[str]:
        """Answer in a thread of its own while the block runs; gives the address."""
        server = self._uvicorn(routes, work)
        self._socket.listen()
        thread = threading.Thread(target=server.run, args=([self._socket],), daemon=True)
        thread.start()
        try:
            yield self.address
        finally:
            server.should_exit = True
            thread.join()
            work.close()
            work.join()

    def _uvicorn(self, routes: Mapping[str, Handler], work: Work) -> uvicorn.Server:
        import uvicorn

        from potstill.core.serve.connection import connections

        class Closing(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                work.close()  # so that those who wait for it are told
                await super().shutdown(sockets)

        guard = Guard(
            _application(routes), self._names, self._shared, self._limit, 12 * self._patience
        )
        return Closing(
            uvicorn.Config(
                guard,
                http=connections(self._patience, self._most),
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )


def _require() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise BackendError(
            f"Server: pages need Starlette and uvicorn ({error}); "
            "pip install 'potstill-core[serve]'"
        ) from error


def _bound(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:  # getaddrinfo would take what is left of it
        raise ConfigError(f"Server: port must be in [0, 65535], got {port}")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        try:
            if os.name == "posix":  # elsewhere it would take the port from another server
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(where)
        except BaseException:
            found.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"Server: could not listen at {host}:{port}: {error}; choose another host or port"
        ) from error
    return found


def _application(routes: Mapping[str, Handler]) -> Any:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = "no such page" if error.status_code == 404 else error.detail
        return JSONResponse({"error": f"{text}: {request.url.path[:100]}"}, error.status_code)

    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)

    made = []
    for name, handler in routes.items():
        method, path = name.split()
        made.append(Route(path, _endpoint(handler), methods=[method]))
    return Starlette(routes=made, exception_handlers={HTTPException: unknown, Exception: broken})


def _endpoint(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        from starlette.requests import ClientDisconnect

        try:
            return _response(await handler(request))
        except (Cancelled, ClientDisconnect) as error:
            refused = Refused(503, str(error) or "the client has gone")
        except Refused as error:
            refused = error
        except PotstillError as error:
            refused = Refused(400, str(error))
        return refusal(refused)

    return endpoint


def _response(reply: Reply) -> Response:
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse

    if isinstance(reply, Page):
        return HTMLResponse(reply.body, headers={"content-security-policy": reply.policy})
    if isinstance(reply, Events):
        return StreamingResponse(_lines(reply), media_type="text/event-stream")
    if isinstance(reply, Path):
        return FileResponse(reply)
    return JSONResponse(reply)


async def _lines(events: Events) -> AsyncIterator[str]:
    async for value in events.values:
        yield f"data: {json.dumps(value)}\n\n"
