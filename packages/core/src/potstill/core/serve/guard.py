"""Checks of who asks and of how much is sent, around any ASGI application."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from potstill.core.serve.reply import SEALED, Refused

__all__ = ["Guard", "refusal"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

CHUNK = 2**16  # bytes of an answer that wait for a slow reader
HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": SEALED.encode(),
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}


class Guard:
    """Let requests through that come from this page or from a program, and are not too large.

    Args:
        app: Application that answers them.
        names: Names of hosts by which the server may be asked, in lower case. Others would be
            those of DNS rebinding: a page of a stranger whose name leads to this machine.
        numeric: Allow any numeric address too: such a name cannot be rebound.
        limit: Bytes of a body.
        patience: Seconds until a body must have arrived.
    """

    def __init__(
        self, app: App, names: set[str], numeric: bool, limit: int, patience: float
    ) -> None:
        self._app, self._names, self._numeric = app, names, numeric
        self.limit, self.patience = limit, patience
        self.held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request; the interface of ASGI."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        body = _Body(self, receive)
        guarded = _guarded(send, body, waits="expect" in headers)
        try:
            self._check_caller(scope["method"], headers)
            self._check_length(headers)
        except Refused as error:
            return await refusal(error)(scope, receive, guarded)
        try:
            await self._app(scope, body.receive, guarded)
        finally:
            self.held -= body.size

    def _check_caller(self, method: str, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        if not self._knows(host):
            known = ", ".join(sorted(self._names))
            raise Refused(403, f"host must be one of {known}, got {host!r}; --host NAME adds one")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host.lower():
            raise Refused(403, f"origin must be this page's, got {origin!r}")
        site = headers.get("sec-fetch-site", "none")
        followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("same-origin", "none") and not followed:
            raise Refused(403, f"requests must come from this page, got one from {site}")

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
            if name is None or "@" in host:
                return False
            return name in self._names or (self._numeric and bool(ipaddress.ip_address(name)))
        except ValueError:
            return False

    def _check_length(self, headers: Mapping[str, str]) -> None:
        length = int(headers.get("content-length", 0))  # figures only: h11 has looked at it
        if length > self.limit:
            raise Refused(413, f"a body may have {self.limit} bytes, got {length}")


class _Body:
    """What a client sends, counted as it arrives."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive = guard, receive
        self.whole = False
        self._deadline = asyncio.get_running_loop().time() + guard.patience
        self.size = 0

    async def receive(self) -> Message:
        if self.whole:  # what is left to come is that the client goes
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, f"the body took over {self._guard.patience:g} s") from None
        size = len(message.get("body", b""))
        self.size += size
        self._guard.held += size
        self.whole = not message.get("more_body", False)
        if self.size > self._guard.limit:
            raise Refused(413, f"a body may have {self._guard.limit} bytes, got more")
        if self._guard.held > 4 * self._guard.limit:
            raise Refused(503, "others are sending much; ask again later", 1)
        return message

    async def drain(self) -> None:
        """Read on for a second and keep nothing: clients look for an answer when all is sent."""
        try:
            async with asyncio.timeout(1):
                while not self.whole:
                    message = await self._receive()
                    self.whole = not message.get("more_body", False)
        except TimeoutError:
            return


def refusal(error: Refused) -> Any:
    """The answer to a request that is refused; an ASGI application."""
    from starlette.responses import JSONResponse

    headers = {} if error.retry is None else {"retry-after": str(error.retry)}
    return JSONResponse({"error": str(error)}, error.status, headers)


def _guarded(send: Send, body: _Body, waits: bool) -> Send:
    """``send`` with the headers of safety, in parts that each wait for the client."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name.lower(), value) for name, value in message.get("headers", ())]
            given = {name for name, _ in headers}
            headers += [h for h in HEADERS.items() if h[0] not in given]
            if message["status"] >= 400:
                if not waits:  # a client that waits is told before it sends anything
                    await body.drain()
                if not body.whole:
                    headers.append((b"connection", b"close"))
            message["headers"] = headers
        data = memoryview(message.get("body", b""))
        while len(data) > CHUNK:
            await send({**message, "body": bytes(data[:CHUNK]), "more_body": True})
            data = data[CHUNK:]
        await send({**message, "body": bytes(data)} if data else message)

    return guarded
