"""A local web page that enlarges photographs: drop one, watch it, compare before and after.

    python apps/sr/web.py                    # then open http://127.0.0.1:8000
    python apps/sr/web.py --model IMDN_x4.safetensors --memory-limit 2000

Nothing leaves the machine: it listens on 127.0.0.1. When its page is closed, the work ends at the
next tile.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.core import PotstillError
from potstill.core.serve import Cancelled, Events, Page, Piece, Refused, Server, Work
from potstill.sr import read_image, upscale, write_image

if TYPE_CHECKING:
    from starlette.requests import Request

PAGE = Path(__file__).with_name("page.html")
LARGEST = 200 * 2**20  # bytes of an uploaded file
KEPT = 8  # finished jobs


@dataclass
class Job:
    """One photograph on its way.

    Attributes:
        name: Of the file, as the page shows it; no file of ours is called so.
        folder: Of its pictures; below it "before.png" and "after.png" once it is done.
        done: Share of the work, 0 to 1.
        state: "waiting", "running", "done", "failed" or "cancelled".
        about: What the page shows under the picture, or why it failed.
        watchers: Pages that look at its progress.
        piece: Its work.
    """

    name: str
    folder: Path
    done: float = 0.0
    state: str = "waiting"
    about: str = ""
    watchers: int = 0
    piece: Piece | None = None

    def shown(self) -> dict[str, Any]:
        return {"state": self.state, "done": self.done, "about": self.about}

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class Studio:
    """Enlarges one photograph after another and remembers the latest.

    Args:
        model: Weight file, or None for our own of the factor that the page asks for.
        memory_limit: Bytes, or None.
        megapixels: Size of a photograph, read before it is decoded.
    """

    def __init__(
        self,
        model: str | None = None,
        memory_limit: int | None = None,
        megapixels: float = 100.0,
    ) -> None:
        self.model = model
        self.memory_limit = memory_limit
        self.megapixels = megapixels
        self.jobs: dict[str, Job] = {}
        self.work = Work(most=8, retry=2)
        self.page = Page(PAGE.read_text(encoding="utf-8"))
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # jobs end in the thread of the work or in the server's

    def close(self) -> None:
        """End the running job at its next tile and remove all pictures."""
        self.work.close()
        self.work.join()
        self._folder.cleanup()

    def routes(self) -> dict[str, Any]:
        """The page, the upload, the progress and the pictures."""
        return {
            "GET /": self._front,
            "POST /jobs": self._upload,
            "GET /jobs/{number}": self._job,
            "GET /jobs/{number}/progress": self._progress,
            "GET /jobs/{number}/{which}.png": self._picture,
        }

    async def _front(self, request: Request) -> Page:
        return self.page

    async def _upload(self, request: Request) -> dict[str, int]:
        scale = request.query_params.get("scale", "2")
        if scale not in ("2", "3", "4"):
            raise Refused(400, f"scale must be 2, 3 or 4, got {scale[:20]!r}")
        name = shown_name(request.query_params.get("name", "image"))
        self.work.admit()
        job = Job(name, Path(tempfile.mkdtemp(dir=self._folder.name)))
        try:
            with open(job.folder / "upload", "wb") as file:
                async for part in request.stream():
                    file.write(part)
                size = file.tell()
            if size == 0:
                raise Refused(400, f"{name} must have at least one byte, got none")
            return {"job": self._submit(job, int(scale))}
        except BaseException:
            shutil.rmtree(job.folder, ignore_errors=True)
            raise

    async def _job(self, request: Request) -> dict[str, Any]:
        return self._find(request).shown()

    async def _progress(self, request: Request) -> Events:
        return Events(watched(self._find(request)))

    async def _picture(self, request: Request) -> Path:
        job, which = self._find(request), request.path_params["which"]
        if which not in ("before", "after"):
            raise Refused(404, "no such page")
        if job.state != "done":
            raise Refused(404, "not ready")
        return job.folder / f"{which}.png"

    def _find(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params["number"])
        if job is None:
            raise Refused(404, "no such page")
        return job

    def _submit(self, job: Job, scale: int) -> int:
        job.piece = self.work.submit(lambda piece: self._enlarge(piece, job, scale))
        number = next(self._numbers)
        with self._lock:
            self.jobs[str(number)] = job
        job.piece.future.add_done_callback(partial(self._end, job))
        return number

    def _end(self, job: Job, result: Future[None]) -> None:
        note(job, result)
        with self._lock:
            ended = [key for key, old in self.jobs.items() if old.ended]
            for key in ended[:-KEPT]:
                shutil.rmtree(self.jobs.pop(key).folder, ignore_errors=True)

    def _enlarge(self, piece: Piece, job: Job, scale: int) -> None:
        def progress(done: int, total: int) -> None:
            piece.check()
            job.done = done / total

        job.state = "running"
        path = job.folder / "upload"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            picture = read_image(path, megapixels=self.megapixels)
            result = upscale(
                picture,
                self.model,
                scale=None if self.model else scale,
                tile=128,
                memory_limit=self.memory_limit,
                progress=progress,
            )
        piece.check()
        write_image(result.image, job.folder / "after.png")
        picture.to_pil().save(job.folder / "before.png")
        h, w = picture.color.shape[:2]
        large_h, large_w = result.image.color.shape[:2]
        size = f"{w} x {h} to {large_w} x {large_h} in {result.seconds:.1f} s"
        notes = [str(w.message).replace(str(path), job.name) for w in said]
        job.about = "; ".join([size + f", tiles: {result.mode}", *notes])


def shown_name(name: str) -> str:
    """The last part of a name, or a refusal where it cannot be shown."""
    last = name.replace("\\", "/").rpartition("/")[2]
    if last in ("", ".", "..") or not last.isprintable() or len(last) > 255:
        raise Refused(400, f"name must be the name of a file, got {last[:20]!r}")
    return last


async def watched(job: Job) -> AsyncIterator[dict[str, Any]]:
    """How far a job is, until it ends; it is cancelled when its last watcher goes before."""
    assert job.piece is not None
    job.watchers += 1
    try:
        while True:
            ended = job.ended or job.piece.cancelled
            yield job.shown()
            if ended:
                return
            await asyncio.sleep(0.15)
    finally:
        job.watchers -= 1
        if not job.watchers:
            job.piece.cancel()


def note(job: Job, result: Future[None]) -> None:
    """Note how a job ended."""
    path = job.folder / "upload"
    error = Cancelled("cancelled") if result.cancelled() else result.exception()
    if error is None:
        job.done, job.state = 1.0, "done"
    elif isinstance(error, Cancelled):
        job.about, job.state = "cancelled", "cancelled"
    elif isinstance(error, PotstillError):
        job.about, job.state = str(error).replace(str(path), job.name), "failed"
    else:  # a bug must not leave the page waiting for ever
        job.about, job.state = f"{type(error).__name__}: {error}", "failed"
        traceback.print_exception(error)
    path.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="name or address to be asked by")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="weight file; our own weights by default")
    parser.add_argument("--memory-limit", type=float, help="MiB to use on top of the photograph")
    parser.add_argument("--megapixels", type=float, default=100.0, help="most of a photograph")
    options = parser.parse_args()
    limit = None if options.memory_limit is None else int(options.memory_limit * 2**20)
    try:
        server = Server(options.host, options.port, limit=LARGEST)
    except PotstillError as error:
        sys.exit(f"error: {error}")
    studio = Studio(options.model, limit, options.megapixels)
    print(f"open {server.address}  (Ctrl-C ends)", flush=True)
    try:
        server.run(studio.routes(), studio.work)
    finally:
        studio.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
