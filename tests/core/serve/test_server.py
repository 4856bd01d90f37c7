"""The server of local pages: who is answered, what is refused, and a hundred clients at a time."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from potstill.core import BackendError, ConfigError, DataError
from potstill.core.serve import Events, Page, Refused, Server, Work, read_json
from potstill.core.serve.guard import Guard

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

HTML = "<!doctype html><style>p {color: red}</style><p>Hello</p><script>let a = 1;</script>"
LIMIT = 2**20


class Site:
    """Routes as an app has them, and what happened to the work."""

    def __init__(self, most: int = 16) -> None:
        self.work = Work(most)
        self.free = threading.Event()  # until it is set, the first piece holds the thread
        self.free.set()
        self.steps = 0
        self.watching = 0

    def routes(self):
        return {
            "GET /": self.page,
            "POST /sum": self.sum,
            "GET /steps": self.many_steps,
            "GET /large": self.large,
            "GET /events": self.events,
            "GET /fault": self.fault,
            "GET /bug": self.bug,
        }

    async def page(self, request):
        return Page(HTML)

    async def sum(self, request):
        body = await request.body()
        return await self.work.answer(request, lambda piece: self.add(body))

    def add(self, body):
        self.free.wait()
        return {"sum": sum(read_json(body))}

    async def many_steps(self, request):
        def steps(piece):
            while True:
                self.steps += 1
                piece.check()
                time.sleep(0.005)

        return await self.work.answer(request, steps)

    async def large(self, request):
        return {"x": "x" * 2**25}

    async def events(self, request):
        size = int(request.query_params.get("size", 1))

        async def values():
            self.watching += 1
            try:
                while True:
                    yield "x" * size
                    await asyncio.sleep(0.01)
            finally:
                self.watching -= 1

        return Events(values())

    async def fault(self, request):
        raise DataError("a.png must be an image, got something else")

    async def bug(self, request):
        raise ZeroDivisionError("a bug")


@pytest.fixture(scope="module")
def site():
    return Site()


@pytest.fixture(scope="module")
def port(site):
    server = Server(patience=2.0, limit=LIMIT)
    with server.background(site.routes(), site.work) as address:
        yield int(address.rpartition(":")[2])
        site.free.set()


def raw(port: int, text: str | bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of the answer to a request as it goes over the wire."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(text.encode("latin-1") if isinstance(text, str) else text)
        return parsed(client.makefile("rb").read())


def parsed(answer: bytes) -> tuple[int, dict[str, str], str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body.decode()


def request(first: str, body: str = "", **headers: str) -> str:
    given = {"host": "localhost", "connection": "close", "content-length": str(len(body))}
    lines = {**given, **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{first} HTTP/1.1\r\n{head}\r\n{body}"


def wait(check) -> None:
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end, f"waited for {check}"
        time.sleep(0.01)


def test_a_page_runs_its_own_scripts_only(port):
    status, headers, body = raw(port, request("GET /"))
    assert (status, body) == (200, HTML)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"script-src 'sha256-[\w+/]+='", policy, re.IGNORECASE)) == 1
    assert len(re.findall(r"style-src 'sha256-[\w+/]+='", policy, re.IGNORECASE)) == 1


@pytest.mark.parametrize("first", ["GET /", "GET /nowhere", "GET /bug", "GET /fault", "POST /sum"])
def test_every_answer_has_the_headers_of_safety(port, first):
    _, headers, _ = raw(port, request(first))
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "deny"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "server" not in headers


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (request("GET /", host="evil.example"), 403, "host must be one of"),
        (request("GET /", host="evil.example:8000"), 403, "got 'evil.example:8000'"),
        (request("GET /", host="localhost.evil.example"), 403, "host must be"),
        (request("GET /", host="192.168.0.7"), 403, "host must be"),
        (request("GET /", host="me@localhost"), 403, "host must be"),
        (request("GET /", host="[::"), 403, "host must be"),
        ("GET / HTTP/1.0\r\n\r\n", 403, "got ''"),
        (request("POST /sum", "[1]", origin="http://evil.example"), 403, "origin must be"),
        (request("POST /sum", "[1]", origin="http://localhost:3000"), 403, "origin must be"),
        (request("POST /sum", "[1]", origin="null"), 403, "origin must be"),
        (request("GET /steps", sec_fetch_site="cross-site"), 403, "from cross-site"),
        (request("GET /steps", sec_fetch_site="same-site"), 403, "from same-site"),
        (request("POST /sum", "[1]", sec_fetch_site="cross-site", sec_fetch_mode="navigate"), 403,
         "from cross-site"),
        (request("POST /sum", "[NaN]"), 400, "numbers must be finite, got NaN"),
        (request("POST /sum", "[-Infinity]"), 400, "got -Infinity"),
        (request("POST /sum", "[1"), 400, "the body must be JSON"),
        (request("POST /sum", "[" * 200000), 400, "got too many"),
        (request("POST /sum", "\xff"), 400, "the body must be JSON"),
        (request("POST /sum", "[" + "9" * 5000 + "]"), 400, "the body must be JSON"),
        (request("POST /sum", "[1]", content_length="-1"), 400, "Invalid HTTP"),
        (request("POST /sum", "[1]", content_length="nan"), 400, "Invalid HTTP"),
        (request("POST /sum", "[1]", content_length="9" * 50), 400, "Invalid HTTP"),
        (request("POST /sum", "x", transfer_encoding="gzip"), 400, "Invalid HTTP"),
        (request("POST /sum", "[1]", content_length=str(2**40), expect="100-continue"), 413,
         "a body may have 1048576 bytes, got 1099511627776"),
        (request("POST /sum", " " * (LIMIT + 1)), 413, "got 1048577"),
        (request("POST /sum", f"{LIMIT + 1:x}\r\n{' ' * (LIMIT + 1)}\r\n0\r\n\r\n",
                 content_length="", transfer_encoding="chunked"), 413, "got more"),
        ("GET /" + "x" * 70000, 400, "Invalid HTTP"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "Invalid HTTP"),
        (request("GET /../../etc/passwd"), 404, "no such page"),
        (request("GET /%2e%2e/etc/passwd"), 404, "no such page"),
        (request("DELETE /sum"), 405, "Method Not Allowed"),
        (request("OPTIONS /sum"), 405, "Method Not Allowed"),
        (request("GET /fault"), 400, "a.png must be an image"),
        (request("GET /bug"), 500, "ZeroDivisionError: a bug"),
    ],
    ids=lambda value: repr(value)[:50],
)  # fmt: skip
def test_refusals(port, text, status, message):
    got, headers, body = raw(port, text)
    assert (got, message in body) == (status, True), (got, body)
    if headers["content-type"] == "application/json":
        assert set(json.loads(body)) == {"error"}


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:80"},
        {"host": "[::1]:80"},
        {"host": "LOCALHOST", "origin": "http://localhost"},
        {"origin": "http://localhost", "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
    ],
)
def test_the_page_and_programs_are_answered(port, headers):
    assert raw(port, request("POST /sum", "[1, 2]", **headers))[::2] == (200, '{"sum":3}')


def test_a_link_on_another_site_may_lead_here(port):
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert raw(port, request("GET /", **link))[0] == 200


def test_a_shared_server_is_asked_by_its_addresses_and_names():
    server = Server("0.0.0.0")
    server.close()
    for host, allowed in [
        ("192.168.0.7:80", True), ("[fe80::1]", True), (socket.gethostname(), True),
        ("evil.example", False),
    ]:  # fmt: skip
        guard = Guard(None, server._names, server._shared, 1, 1)
        assert guard._knows(host) is allowed, host


def test_more_work_than_there_is_room_for_is_asked_to_come_again(site, port):
    site.free.clear()
    clients = []
    for _ in range(16):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(request("POST /sum", "[1, 2]").encode())
        clients.append(client)
    wait(lambda: len(site.work._waiting) == 15)
    status, headers, body = raw(port, request("POST /sum", "[5]"))
    assert (status, headers["retry-after"]) == (503, "1")
    assert "16 requests are waiting" in body
    assert raw(port, request("GET /"))[0] == 200  # what needs no work is answered
    clients.pop().close()  # one gives up: its place is free again
    wait(lambda: any(piece.cancelled for piece in site.work._waiting))
    late = socket.create_connection(("127.0.0.1", port))
    late.sendall(request("POST /sum", "[1, 2]").encode())
    clients.append(late)
    wait(lambda: len(site.work._waiting) == 15 and site.work._waiting[-1].cancelled is False)
    site.free.set()
    for client in clients:
        assert parsed(client.makefile("rb").read())[::2] == (200, '{"sum":3}')
        client.close()


def test_work_ends_at_its_next_step_when_its_client_goes(site, port):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(request("GET /steps").encode())
        wait(lambda: site.steps > 0)
        assert site.work._running is not None
    wait(lambda: site.work._running is None)


def test_a_stream_ends_when_its_client_goes(site, port):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(request("GET /events").encode())
        assert b"\r\n\r\n" in client.recv(2**16)
        wait(lambda: site.watching == 1)
    wait(lambda: site.watching == 0)


def test_a_reader_who_stops_reading_is_left(site, port):
    """After two seconds; meanwhile one part of the answer waits in memory."""
    assert raw(port, request("GET /large"))[0] == 200  # a reader gets all of it
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(request("GET /events?size=1000000").encode())
        wait(lambda: site.watching == 1)
        wait(lambda: site.watching == 0)


def test_a_body_has_a_deadline_and_a_common_limit():
    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    scope = {"method": "POST", "headers": [(b"host", b"localhost")]}

    async def ask(guard, part, pause):
        async def receive():
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": part, "more_body": True}

        await asyncio.wait_for(guard(scope, receive, lambda message: None), 30)

    late = Guard(app, {"localhost"}, False, 2**20, patience=0.05)
    for pause in (0.01, 60):  # byte by byte, or not at all
        with pytest.raises(Refused, match=r"the body took over 0.05 s") as error:
            asyncio.run(ask(late, b"x", pause))
    assert error.value.status == 408
    assert late.held == 0

    crowded = Guard(app, {"localhost"}, False, 100, patience=60)
    crowded.held = 350
    with pytest.raises(Refused, match="others are sending much") as error:
        asyncio.run(ask(crowded, b"x" * 60, 0))
    assert (error.value.status, error.value.retry, crowded.held) == (503, 1, 350)


async def good(port: int, number: int) -> int:
    """A client as it should be: it comes again when it is asked to."""
    asked = 0
    while True:
        asked += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("POST /sum", f"[{number}, 1]").encode())
        status, headers, body = parsed(await reader.read())
        writer.close()
        if status == 200:
            assert json.loads(body) == {"sum": number + 1}
            return asked
        assert status == 503
        await asyncio.sleep(0.2 * int(headers["retry-after"]))


async def bad(port: int, kind: str) -> None:
    """A client that is slow or broken; returns when the server has closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    text = request("POST /sum", "[1, 2]" + " " * 1000).encode()
    writer.write({
        "silent": b"", "slow head": text[:20], "slow body": text[:-900], "gone": text[:-900],
        "garbage": b"\0" * 1000, "two": text + text[:30], "large": text.replace(b"1006", b"9" * 9),
    }[kind])  # fmt: skip
    try:
        await writer.drain()
        if kind in ("gone", "slow body"):  # the deadline of bodies is long: these go by themselves
            await asyncio.sleep(0.5)
            writer.transport.abort()
            return
        for byte in b"x" * 500 if kind == "slow head" else b"":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.1)
        await reader.read()
    except OSError:
        pass
    finally:
        writer.transport.abort()


def test_a_hundred_clients_slow_and_broken_ones_among_them(site, port):
    process, before = psutil.Process(), threading.active_count()
    memory, most = process.memory_info().rss, 0
    kinds = ["silent", "slow head", "slow body", "gone", "garbage", "two", "large"]

    async def crowd():
        nonlocal most
        broken = [asyncio.create_task(bad(port, kind)) for kind in kinds for _ in range(8)]
        await asyncio.sleep(0.1)
        answers = [asyncio.create_task(good(port, number)) for number in range(44)]
        asked = await asyncio.gather(*answers)
        most = threading.active_count()
        held = process.memory_info().rss - memory
        await asyncio.wait_for(asyncio.gather(*broken), 30)
        return asked, held

    asked, held = asyncio.run(crowd())
    assert len(asked) == 44
    assert most <= before
    assert held < 2**26
    assert raw(port, request("GET /"))[0] == 200


def test_silent_connections_do_not_keep_others_out():
    server, site = Server(patience=30.0, most=16), Site()
    with server.background(site.routes(), site.work) as address:
        where = ("127.0.0.1", int(address.rpartition(":")[2]))
        silent = [socket.create_connection(where) for _ in range(60)]
        assert raw(where[1], request("POST /sum", "[1, 2]"))[0] == 200
        closed = 0
        for client in silent:
            client.setblocking(False)
            try:
                closed += client.recv(1) == b""
            except BlockingIOError:
                pass
            except ConnectionResetError:
                closed += 1
            client.close()
        assert closed >= 44


def test_an_address_that_is_taken_is_told_before_anything_starts():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"could not listen at 127.0.0.1:{port}"):
            Server(port=port)
    with pytest.raises(ConfigError, match=r"port must be in \[0, 65535\], got 70000"):
        Server(port=70000)
    with pytest.raises(ConfigError, match="could not listen at no.such.host.invalid:0"):
        Server("no.such.host.invalid")


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_what_is_missing_is_named_with_what_installs_it(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BackendError, match=r"pip install 'potstill-core\[serve\]'"):
        Server()


PROGRAM = """
from potstill.core.serve import Server, Work

async def steps(request):
    def forever(piece):
        print("begun", flush=True)
        while True:
            piece.check()
    return await work.answer(request, forever)

server, work = Server(), Work()
print(server.address, flush=True)
server.run({"GET /steps": steps}, work)
print("in order", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of posix")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_server_in_order_in_the_middle_of_work(number):
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    port = int(child.stdout.readline().rpartition(":")[2])
    client = None
    while client is None:  # the address is listened at a moment later
        try:
            client = socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.02)
    client.sendall(request("GET /steps").encode())
    assert child.stdout.readline() == "begun\n"
    child.send_signal(number)
    status, _, body = parsed(client.makefile("rb").read())
    client.close()
    assert (status, "error" in body) == (503, True)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (0, "in order\n", "")
