"""The web page: by requests, and in a real headless Chromium over the WebDriver protocol."""

import importlib.util
import io
import json
import os
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.core.serve import Server
from potstill.sr import IMDN, save_model

pytest.importorskip("starlette")

WEB = Path(__file__).parents[2] / "apps" / "sr" / "web.py"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


@pytest.fixture
def photograph() -> np.ndarray:
    """An image with edges, [48 60 3] bytes."""
    return np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8).repeat(6, 0).repeat(6, 1)


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """What the app does, with a tiny network."""
    spec = importlib.util.spec_from_file_location("sr_web", WEB)
    web = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sr_web", web)  # its dataclass looks there for annotations
    spec.loader.exec_module(web)
    tiny = save_model(IMDN(2, channels=8, blocks=2), tmp_path / "tiny.safetensors")
    studio = web.Studio(str(tiny), megapixels=1.0)
    yield studio
    studio.close()
    assert not Path(studio._folder.name).exists()


@pytest.fixture
def address(studio):
    """The app on a free port."""
    with Server(limit=2**22).background(studio.routes(), studio.work) as address:
        yield address


def call(method: str, url: str, body=None):
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def wait(check, seconds=40):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := check():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {check}")


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def finished(address: str, number: int) -> dict:
    def check():
        job = call("GET", f"{address}/jobs/{number}")[1]
        return job if job["state"] in ("done", "failed", "cancelled") else None

    return wait(check)


def test_a_job_from_upload_to_picture(address, photograph):
    status, answer = call("POST", f"{address}/jobs?scale=2&name=../../a.png", png(photograph))
    assert status == 200
    job = finished(address, answer["job"])
    assert job["state"] == "done", job
    assert job["about"].startswith("60 x 48 to 120 x 96 in ")
    with urllib.request.urlopen(f"{address}/jobs/{answer['job']}/after.png") as response:
        assert Image.open(io.BytesIO(response.read())).size == (120, 96)


def test_errors_are_told(address):
    number = call("POST", f"{address}/jobs?scale=2&name=a.png", b"not an image")[1]["job"]
    job = finished(address, number)
    assert job["state"] == "failed"
    assert "a.png must be an image, got something else" in job["about"]


def claiming(side: int) -> bytes:
    """A PNG of some bytes whose header claims a large picture."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4


@pytest.mark.parametrize(
    ("query", "body", "status", "message"),
    [
        ("scale=7&name=a.png", b"x", 400, "scale must be 2, 3 or 4, got '7'"),
        ("scale=nan&name=a.png", b"x", 400, "scale must be"),
        ("scale=2&name=a.png", b"", 400, "a.png must have at least one byte"),
        ("scale=2&name=a/..", b"x", 400, "name must be the name of a file, got '..'"),
        ("scale=2&name=", b"x", 400, "name must be"),
        ("scale=2&name=a%00.png", b"x", 400, "name must be"),
        ("scale=2&name=" + "a" * 300, b"x", 400, "name must be"),
        ("scale=2&name=a.png", b"x" * (2**22 + 1), 413, "a body may have 4194304 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_refusals(address, studio, query, body, status, message):
    got, answer = call("POST", f"{address}/jobs?{query}", body)
    assert (got, message in answer["error"]) == (status, True), answer
    assert os.listdir(studio._folder.name) == []
    assert studio.jobs == {}


@pytest.mark.parametrize(
    "path", ["jobs/99", "jobs/" + "9" * 5000, "jobs/1/etc.png", "../etc/passwd"]
)
def test_what_is_not_there(address, path):
    assert call("GET", f"{address}/{path}")[0] == 404


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (claiming(100_000), "a.png must have at most 1 megapixels, got 100000 x 100000"),
        (claiming(1001), "a.png must have at most 1 megapixels, got 1001 x 1001"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "got EPS"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_large_and_running_pictures_are_refused_before_they_are_decoded(
    address, monkeypatch, data, message
):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    number = call("POST", f"{address}/jobs?scale=2&name=a.png", data)[1]["job"]
    job = finished(address, number)
    assert (job["state"], message in job["about"]) == ("failed", True), job


@pytest.fixture
def held(monkeypatch, studio):
    """Work that stops at its second tile until it is let go; needs a picture of many tiles."""
    free, entered, tiles = threading.Event(), threading.Event(), []

    def upscale(*args, progress, **options):
        def step(done, total):
            tiles.append(done)
            entered.set()
            free.wait(30)
            progress(done, total)

        return slow(*args, progress=step, **options)

    slow = sys.modules["sr_web"].upscale
    monkeypatch.setattr("sr_web.upscale", upscale)
    yield free, entered, tiles
    free.set()


def test_a_job_ends_at_its_next_tile_when_the_page_is_closed(address, studio, photograph, held):
    free, entered, tiles = held
    data = png(photograph.repeat(8, axis=0).repeat(8, axis=1))
    number = call("POST", f"{address}/jobs?scale=2&name=a.png", data)[1]["job"]
    with urllib.request.urlopen(f"{address}/jobs/{number}/progress") as progress:
        first = json.loads(progress.readline().removeprefix(b"data: "))
        assert first["state"] in ("waiting", "running")
        assert entered.wait(30)
    wait(lambda: studio.jobs[str(number)].watchers == 0)
    reached = len(tiles)
    free.set()
    assert finished(address, number)["state"] == "cancelled"
    assert len(tiles) == reached
    assert not (studio.jobs[str(number)].folder / "upload").exists()
    # The thread is free for the next.
    number = call("POST", f"{address}/jobs?scale=2&name=b.png", png(photograph))[1]["job"]
    assert finished(address, number)["state"] == "done"


def test_a_job_is_watched_to_its_end(address, photograph):
    number = call("POST", f"{address}/jobs?scale=2&name=a.png", png(photograph))[1]["job"]
    with urllib.request.urlopen(f"{address}/jobs/{number}/progress", timeout=60) as progress:
        assert progress.headers["content-type"].startswith("text/event-stream")
        lines = progress.read().split(b"\n\n")
    last = json.loads(lines[-2].removeprefix(b"data: "))
    assert (last["state"], last["done"]) == ("done", 1.0)


def test_the_queue_is_bounded_and_few_pictures_are_kept(address, studio, photograph, held):
    free, entered, _ = held
    query, data = "jobs?scale=2&name=a.png", png(photograph)
    first = call("POST", f"{address}/{query}", data)[1]["job"]
    assert entered.wait(30)
    others = [call("POST", f"{address}/{query}", data)[1]["job"] for _ in range(7)]
    status, answer = call("POST", f"{address}/{query}", data)
    assert (status, "8 requests are waiting" in answer["error"]) == (503, True)
    free.set()
    for number in [first, *others]:  # those that were taken are all done
        assert finished(address, number)["state"] == "done"
    later = [call("POST", f"{address}/{query}", data)[1]["job"] for _ in range(3)]
    for number in later:
        assert finished(address, number)["state"] == "done"
    wait(lambda: len(studio.jobs) == 8)
    assert len(os.listdir(studio._folder.name)) == len(studio.jobs)
    assert call("GET", f"{address}/jobs/{first}")[0] == 404


def test_drop_watch_and_compare_in_chromium(address, browser, photograph, tmp_path):
    script = browser.script
    path = tmp_path / "größe.png"
    path.write_bytes(png(photograph.repeat(6, axis=0).repeat(6, axis=1)))
    browser.visit(address, 1000, 1100)
    chooser = browser.ask("POST", "/element", {"using": "css selector", "value": "#file"})[ELEMENT]
    script(  # remember what the progress bar showed
        "window.shares = []; new MutationObserver(() => shares.push("
        "document.getElementById('progress').value)).observe("
        "document.getElementById('about'), {childList: true});"
    )
    browser.ask("POST", f"/element/{chooser}/value", {"text": str(path)})
    wait(lambda: script("return !document.getElementById('result').hidden"))
    assert script("return document.getElementById('after').naturalWidth") == 720
    assert script("return document.getElementById('before').naturalWidth") == 360
    assert "360 x 288 to 720 x 576" in script("return document.getElementById('about').innerText")
    assert script("return document.getElementById('save').download") == "größe-x2.png"
    shares = script("return window.shares")
    assert shares == sorted(shares)
    assert shares[-1] == 1

    # the slider moves what is cut off of the picture on top
    script("const s = document.getElementById('slide'); s.value = 80;"
           "s.dispatchEvent(new Event('input'));")  # fmt: skip
    clip = script("return getComputedStyle(document.querySelector('.before')).clipPath")
    assert "20%" in clip, clip
    shot = browser.screenshot()
    assert np.asarray(shot.convert("L")).std() > 20  # something is drawn
    if keep := os.environ.get("POTSTILL_SCREENSHOT"):
        shot.save(keep)

    assert all("favicon.ico" in error for error in browser.errors())  # its policy allows it all
    script("document.body.append(Object.assign(document.createElement('script'),"
           "{textContent: 'window.foreign = 1'}));")  # fmt: skip
    assert script("return window.foreign") is None
    assert "Content Security Policy" in browser.errors()[0]

    # a damaged file is told, not swallowed
    path.write_bytes(b"no image")
    browser.ask("POST", f"/element/{chooser}/value", {"text": str(path)})
    wait(lambda: script("return document.getElementById('about').className == 'bad'"))
    assert "got something else" in script("return document.getElementById('about').innerText")
