"""A local web page that enlarges photographs: drop one, watch it, compare before and after.

    python apps/sr/web.py                    # then open http://127.0.0.1:8000
    python apps/sr/web.py --model IMDN_x4.safetensors --memory-limit 2000

Standard library only, besides potstill-sr. Nothing leaves the machine: it listens on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import re
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from potstill.core import PotstillError
from potstill.sr import Picture, read_image, upscale, write_image

PAGE = Path(__file__).with_name("page.html")
LARGEST = 200 * 2**20  # bytes of an uploaded file
KEPT = 8  # finished jobs


@dataclass
class Job:
    """One photograph on its way.

    Attributes:
        done: Share of the work, 0 to 1.
        state: "waiting", "running", "done" or "failed".
        about: What the page shows under the picture, or why it failed.
        files: "before" and "after" as PNG bytes.
    """

    name: str
    done: float = 0.0
    state: str = "waiting"
    about: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


class Studio:
    """Enlarges one photograph after another and remembers the latest.

    Args:
        model: Weight file, or None for our own of the factor that the page asks for.
        memory_limit: Bytes, or None.
    """

    def __init__(self, model: str | None = None, memory_limit: int | None = None) -> None:
        self.model = model
        self.memory_limit = memory_limit
        self.jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="upscale")

    def submit(self, data: bytes, name: str, scale: int) -> int:
        """Queue a photograph; returns the number of its job."""
        number, job = next(self._numbers), Job(name)
        with self._lock:
            self.jobs[number] = job
            for old in list(self.jobs)[:-KEPT]:
                del self.jobs[old]
        self._worker.submit(self._run, job, data, scale)
        return number

    def close(self) -> None:
        """Finish the running job and stop."""
        self._worker.shutdown(cancel_futures=True)

    def _run(self, job: Job, data: bytes, scale: int) -> None:
        job.state = "running"
        try:
            self._enlarge(job, data, scale)
            job.done, job.state = 1.0, "done"
        except PotstillError as error:
            job.about, job.state = str(error), "failed"
        except Exception as error:  # a bug must not leave the page waiting for ever
            job.about, job.state = f"{type(error).__name__}: {error}", "failed"
            raise

    def _enlarge(self, job: Job, data: bytes, scale: int) -> None:
        def progress(done: int, total: int) -> None:
            job.done = done / total

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            path = Path(folder, job.name)
            path.write_bytes(data)
            picture = read_image(path)
            result = upscale(
                picture,
                self.model,
                scale=None if self.model else scale,
                tile=128,
                memory_limit=self.memory_limit,
                progress=progress,
            )
            made: Picture = result.image
            job.files["after"] = write_image(made, Path(folder, "after.png")).read_bytes()
        before = io.BytesIO()
        picture.to_pil().save(before, "PNG")
        job.files["before"] = before.getvalue()
        h, w = picture.color.shape[:2]
        large_h, large_w = made.color.shape[:2]
        notes = [str(w.message) for w in said]
        job.about = "; ".join(
            [
                f"{w} x {h} to {large_w} x {large_h} in {result.seconds:.1f} s, "
                f"tiles: {result.mode}",
                *notes,
            ]
        )


class Handler(BaseHTTPRequestHandler):
    """The page, the upload, the progress and the pictures."""

    studio: Studio

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/":
            return self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        match = re.fullmatch(r"/jobs/(\d+)(?:/(before|after)\.png)?", path)
        job = self.studio.jobs.get(int(match[1])) if match else None
        if match is None or job is None:
            return self._json({"error": "no such page"}, HTTPStatus.NOT_FOUND)
        if match[2] is None:
            return self._json({"state": job.state, "done": job.done, "about": job.about})
        if match[2] not in job.files:
            return self._json({"error": "not ready"}, HTTPStatus.NOT_FOUND)
        return self._send(job.files[match[2]], "image/png")

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        scale = query.get("scale", ["2"])[0]
        if url.path != "/jobs" or scale not in ("2", "3", "4"):
            return self._json({"error": "no such page"}, HTTPStatus.NOT_FOUND)
        if not 0 < length <= LARGEST:
            self.close_connection = True
            reason = f"the file must have 1 byte to {LARGEST >> 20} MiB, got {length} bytes"
            return self._json({"error": reason}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        # Only the last part of the name, so that it cannot point anywhere.
        name = Path(query.get("name", ["image"])[0].replace("\\", "/")).name or "image"
        number = self.studio.submit(self.rfile.read(length), name, int(scale))
        return self._json({"job": number})

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(studio: Studio, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1; port 0 takes a free one."""
    handler = type("Handler", (Handler,), {"studio": studio})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="weight file; our own weights by default")
    parser.add_argument("--memory-limit", type=float, help="MiB to use on top of the photograph")
    options = parser.parse_args()
    limit = None if options.memory_limit is None else int(options.memory_limit * 2**20)
    studio = Studio(options.model, limit)
    with serve(studio, options.port) as server:
        print(f"open http://127.0.0.1:{server.server_port}  (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
        finally:
            studio.close()


if __name__ == "__main__":
    main()
