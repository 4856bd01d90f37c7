"""The web page in a real headless Chromium, driven over the WebDriver protocol."""

import importlib.util
import io
import json
import os
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.sr import IMDN, save_model

WEB = Path(__file__).parents[2] / "apps" / "sr" / "web.py"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


@pytest.fixture
def photograph() -> np.ndarray:
    """An image with edges, [48 60 3] bytes."""
    return np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8).repeat(6, 0).repeat(6, 1)


@pytest.fixture
def address(tmp_path):
    """The app on a free port, with a tiny network."""
    spec = importlib.util.spec_from_file_location("sr_web", WEB)
    web = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["sr_web"] = web  # its dataclass looks there for its annotations
    spec.loader.exec_module(web)
    tiny = save_model(IMDN(2, channels=8, blocks=2), tmp_path / "tiny.safetensors")
    studio = web.Studio(str(tiny))
    server = web.serve(studio, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
    studio.close()
    del sys.modules["sr_web"]


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
        return job if job["state"] in ("done", "failed") else None

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
    assert call("POST", f"{address}/jobs?scale=7&name=a.png", b"x")[0] == 404
    assert call("POST", f"{address}/jobs?scale=2&name=a.png", b"")[0] == 413
    assert call("GET", f"{address}/jobs/99")[0] == 404
    assert call("GET", f"{address}/../etc/passwd")[0] == 404


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

    # a damaged file is told, not swallowed
    path.write_bytes(b"no image")
    browser.ask("POST", f"/element/{chooser}/value", {"text": str(path)})
    wait(lambda: script("return document.getElementById('about').className == 'bad'"))
    assert "got something else" in script("return document.getElementById('about').innerText")
