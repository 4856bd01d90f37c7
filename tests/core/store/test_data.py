import hashlib
import http.server
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.core.errors import DataError
from potstill.core.store.data import download, fingerprint, locate, root, sha256

CONTENT = random.Random(0).randbytes(700_001)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT on loopback; `mode` says how it misbehaves."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode, self.ranges = "good", []
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        mode, asked = self.server.mode, self.headers.get("Range")
        self.server.ranges.append(asked)
        if mode == "absent":
            return self.send_error(404)
        if mode == "broken once":
            self.server.mode = "good"
            return self.send_error(503)
        content = bytes(len(CONTENT)) if mode == "corrupt" else CONTENT
        start = 0
        if asked and mode != "no ranges":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + 200_000 if mode == "truncates" else len(content)
        self.wfile.write(content[start:stop])
        return None


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("potstill.core.store.data.time.sleep", lambda seconds: None)


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def part_of(target):
    return target.with_name(f".{target.name}.{DIGEST[:12]}.part")


def test_download_verifies_and_does_not_fetch_twice(server, tmp_path):
    target = tmp_path / "new" / "file.bin"
    assert download(server.url, target, DIGEST) == target
    assert target.read_bytes() == CONTENT
    download(server.url, target, DIGEST.upper())
    assert server.ranges == [None]
    assert only_file(target.parent) == target  # no lock, no part left


def test_download_continues_where_an_earlier_one_stopped(server, tmp_path):
    target = tmp_path / "file.bin"
    part_of(target).write_bytes(CONTENT[:300_000])
    download(server.url, target, DIGEST)
    assert server.ranges == ["bytes=300000-"]
    assert target.read_bytes() == CONTENT


def test_truncated_connections_are_continued(server, tmp_path):
    server.mode = "truncates"
    target = download(server.url, tmp_path / "file.bin", DIGEST)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=200000-", "bytes=400000-", "bytes=600000-"]


def test_too_many_truncations_keep_what_came(server, tmp_path):
    server.mode = "truncates"
    target = tmp_path / "file.bin"
    with pytest.raises(DataError, match=r"ended after 400000 bytes after 2 attempts.*\.part"):
        download(server.url, target, DIGEST, attempts=2)
    assert not target.exists()
    assert part_of(target).read_bytes() == CONTENT[:400_000]


def test_damaged_part_is_started_again(server, tmp_path):
    target = tmp_path / "file.bin"
    part_of(target).write_bytes(b"x" * 1000)
    assert download(server.url, target, DIGEST).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_part_with_nothing_left_to_fetch(server, tmp_path, size):
    target = tmp_path / "file.bin"
    part_of(target).write_bytes((CONTENT + b"extra")[:size])
    assert download(server.url, target, DIGEST).read_bytes() == CONTENT


def test_server_without_ranges_sends_all_again(server, tmp_path):
    server.mode = "no ranges"
    target = tmp_path / "file.bin"
    part_of(target).write_bytes(CONTENT[:1000])
    assert download(server.url, target, DIGEST).read_bytes() == CONTENT


def test_corrupt_content_is_refused_and_deleted(server, tmp_path):
    server.mode = "corrupt"
    target = tmp_path / "file.bin"
    target.write_bytes(b"older")
    with pytest.raises(DataError, match=f"must have sha256 {DIGEST}, got "):
        download(server.url, target, DIGEST)
    assert target.read_bytes() == b"older"
    assert not part_of(target).exists()


def test_temporary_fault_is_retried_and_absence_is_not(server, tmp_path):
    server.mode = "broken once"
    download(server.url, tmp_path / "file.bin", DIGEST)
    server.mode = "absent"
    with pytest.raises(DataError, match="HTTP status 404"):
        download(server.url, tmp_path / "other.bin", DIGEST)
    assert len(server.ranges) == 3


def test_nobody_listens(tmp_path, server):
    url = server.url
    server.server_close()
    with pytest.raises(DataError, match=r"must be reachable, got .*try again"):
        download(url, tmp_path / "file.bin", DIGEST, attempts=2)


def test_two_downloads_at_once_share_one_fetch(server, tmp_path):
    target = tmp_path / "file.bin"
    threads = [
        threading.Thread(target=download, args=(server.url, target, DIGEST)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None]


@pytest.mark.parametrize(
    ("url", "digest", "message"),
    [("http://h/x", "abc", "64 hex digits"), ("file:///etc/passwd", DIGEST, "http://")],
)
def test_download_refuses_bad_arguments(tmp_path, url, digest, message):
    with pytest.raises(DataError, match=message):
        download(url, tmp_path / "x", digest)


def test_unwritable_target(tmp_path, server):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="must be writable"):
        download(server.url, tmp_path / "file" / "x", DIGEST)


def test_root_follows_the_variable_then_the_platform(monkeypatch, tmp_path):
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    assert root() == tmp_path
    monkeypatch.setenv("POTSTILL_DATA", "~/x")
    assert root() == Path.home() / "x"
    monkeypatch.setenv("POTSTILL_DATA", " ")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert root() == Path("/c/potstill")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert root() == Path.home() / ".cache" / "potstill"
    monkeypatch.setattr("sys.platform", "darwin")
    assert root() == Path.home() / "Library" / "Caches" / "potstill"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/l")
    assert root() == Path("/l/potstill")


def test_locate_finds_fetches_or_explains(monkeypatch, tmp_path, server):
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    (tmp_path / "a").mkdir()
    assert locate("a") == tmp_path / "a"
    assert locate("a/f.bin", url=server.url, sha256=DIGEST).read_bytes() == CONTENT
    with pytest.raises(DataError, match=r"b must exist.*POTSTILL_DATA is .*that holds b"):
        locate("b")
    with pytest.raises(DataError, match="run the fetcher"):
        locate("b", hint="run the fetcher")
    with pytest.raises(DataError, match="needs the sha256"):
        locate("b", url=server.url)
    monkeypatch.delenv("POTSTILL_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="POTSTILL_DATA is not set"):
        locate("b")


@pytest.mark.parametrize("bad", ["../x", "/etc", "a/../../x"])
def test_locate_stays_below_the_root(bad):
    with pytest.raises(DataError, match="below the data root"):
        locate(bad)


def test_sha256_of_file_and_folder(tmp_path):
    (tmp_path / "f").write_bytes(CONTENT)
    assert sha256(tmp_path / "f") == DIGEST
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    (tmp_path / "d" / "b").write_text("2")
    before = sha256(tmp_path / "d")
    lines = "".join(
        f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n"
        for name, text in [("a", "1"), ("b", "2")]
    )
    assert before == hashlib.sha256(lines.encode()).hexdigest()  # what `sha256sum a b` prints
    os.rename(tmp_path / "d" / "b", tmp_path / "d" / "c")
    assert sha256(tmp_path / "d") != before
    with pytest.raises(DataError, match="must exist"):
        sha256(tmp_path / "nothing")


def test_fingerprint_sees_every_difference():
    x = torch.arange(6.0).reshape(2, 3)
    values = [
        x, x.T, x.reshape(3, 2), x.double(), x.bfloat16(), x + 1, x.numpy(), x.numpy().T, x > 2,
        [x], {"a": x}, {"b": x}, torch.tensor(1.0), 1.0, 1, "1", b"1", None, True,
        [[1], 2], [1, [2]], np.float32([1]), torch.zeros(0), torch.zeros(0, 2),
    ]  # fmt: skip
    digests = [fingerprint(value) for value in values]
    assert len(set(digests)) == len(values)
    assert fingerprint(x.T.contiguous().T) == fingerprint(x)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(DataError, match="got set"):
        fingerprint({1})
