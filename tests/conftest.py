"""Workers that share the cores, the data that a test may read, a browser for the tests of pages.

Workers get one thread each, since pools that spin stop each other.
"""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch; processes inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _data_root(request, monkeypatch, tmp_path_factory):
    """A data root with what ``requires_data`` names for this test; without it, none.

    So no test passes because of data that it does not name, on whatever machine.
    """
    from potstill.core.store.data import root

    whole, folder = root().absolute(), tmp_path_factory.getbasetemp() / "no-data"
    named = {path for mark in request.node.iter_markers("data") for path in mark.args}
    if named:
        folder = tmp_path_factory.mktemp("data")
    for path in sorted(named):
        if not (folder / path).exists():  # below another one
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(whole / path)
    monkeypatch.setenv("POTSTILL_DATA", str(folder))


@pytest.fixture
def curves():
    """The curves of a run are drawn in this test."""


@pytest.fixture(autouse=True)
def _curves_undrawn(request, monkeypatch):
    """A run ends with a picture of one pixel: to draw its curves costs more than most runs here."""
    fit = sys.modules.get("potstill.core.engine.fit")
    if fit is not None and "curves" not in request.fixturenames:

        def dot(rows, path):
            Image.new("L", (1, 1)).save(path)

        monkeypatch.setattr(fit, "plot_curves", dot)


@pytest.fixture
def on_two_processes(tmp_path):
    """Function of verbs, as ``{name: words}``: two processes do what one does, and one writes.

    All verbs of a package run one after the other, here and in one pair of processes, which share
    what is imported here; ``{share:8}`` is 8 by the number of processes. `apart` is the largest
    difference of a weight; of the verbs in `losses` only losses are compared, to 1e-4.
    """
    from safetensors.torch import load_file

    from potstill.core.engine import run_ranks
    from potstill.core.trust.compare import distance

    def compare(verbs, apart=1e-6, losses=()):
        assert set(_verbs(verbs, str(tmp_path / "on-1")).values()) == {0}
        ranks = run_ranks(_watched_verbs, 2, verbs, str(tmp_path / "on-2"))
        assert all(set(codes.values()) == {0} for codes, _ in ranks), ranks
        assert [len(written) > 0 for _, written in ranks] == [True, False], ranks
        for name in verbs:
            one, two = (tmp_path / f"on-{world}" / name for world in (1, 2))
            files = [sorted(p.relative_to(f) for p in f.rglob("*") if "step-" not in str(p))
                     for f in (one, two)]  # fmt: skip
            assert files[0] == files[1]
            for path in two.rglob("*.json"):
                json.loads(path.read_text())
            assert any(load_file(path) for path in two.rglob("*.safetensors"))
            assert name in losses or distance(one, two) <= apart, name
            for path in two.rglob("history.jsonl"):
                pair = (path, one / path.relative_to(two))
                rows = [[json.loads(line)["loss"] for line in p.read_text().splitlines()]
                        for p in pair]  # fmt: skip
                assert rows[0] == pytest.approx(rows[1], rel=1e-4), path

    return compare


def _watched_verbs(verbs, out):
    """Codes of the verbs, and what this process writes below ``out``."""
    written = []

    def watch(event, about):
        if event == "os.rename" or (
            event == "open" and (about[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        ):
            paths = [str(about[0]), str(about[1])]
            written.extend(path for path in paths if path.startswith(out))

    sys.addaudithook(watch)
    return _verbs(verbs, out), written


def _verbs(verbs, out):
    """Codes of the verbs in this process, of as many as there are."""
    import torch.distributed as dist

    from potstill.core.command.cli import main

    world, codes = int(os.environ.get("WORLD_SIZE", 1)), {}
    for name, words in verbs.items():
        shared = (re.sub(r"{share:(\d+)}", lambda n: str(int(n[1]) // world), w) for w in words)
        if world > 1 and not dist.is_initialized():  # the engine of the verb before has ended it
            way = f"file://{out}-{name}"
            dist.init_process_group("gloo", way, rank=int(os.environ["RANK"]), world_size=world)
        codes[name] = main([*shared, "--device", "cpu", "--out", f"{out}/{name}"])
    return codes


class Browser:
    """A headless Chromium over the WebDriver protocol."""

    def __init__(self, session: str) -> None:
        self.session = session

    def ask(self, method: str, path: str, body=None):
        status, answer = call(method, self.session + path, body if method == "GET" else body or {})
        assert status == 200, answer
        return answer["value"]

    def open(self, page: Path, width: int, height: int, dark: bool) -> None:
        """Load a file in a window of that size and scheme."""
        self.visit(page.resolve().as_uri(), width, height, dark)

    def visit(self, url: str, width: int, height: int, dark: bool = False) -> None:
        """Load an address in a window of that size and scheme."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self.ask("POST", "/url", {"url": url})

    def devtools(self, command: str, **parameters):
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def script(self, text: str, *arguments):
        return self.ask("POST", "/execute/sync", {"script": text, "args": list(arguments)})

    def errors(self) -> list[str]:
        """What the console complained about since the last call."""
        return [row["message"] for row in self.ask("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, full: bool = False) -> Image.Image:
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=full)["data"]
        return Image.open(io.BytesIO(base64.b64decode(shot)))


def call(method: str, url: str, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="session")
def browser():
    """A `Browser`, or a skip with what to install."""
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.skip("needs chromium and chromedriver on PATH (apt install chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    base = f"http://127.0.0.1:{port}"
    try:
        yield _session(base, binary)
    finally:
        process.terminate()
        process.wait(10)


def _session(base: str, binary: str):
    end = time.monotonic() + 60
    while True:
        try:
            if call("GET", f"{base}/status")[1]["value"]["ready"]:
                break
        except OSError:
            assert time.monotonic() < end, "chromedriver did not start"
            time.sleep(0.05)
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    wanted = {
        "goog:chromeOptions": {"binary": binary, "args": flags},
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    status, answer = call("POST", f"{base}/session", {"capabilities": {"alwaysMatch": wanted}})
    assert status == 200, answer
    return Browser(f"{base}/session/{answer['value']['sessionId']}")
