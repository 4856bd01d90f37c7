"""Files larger than memory: strips in, strips out, and a checkpoint after each."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import ConfigError, DataError, atomic
from potstill.sr.backends.precisions import exact_floats
from potstill.sr.backends.runners import Runner, ready_runner
from potstill.sr.images.tiff import start_tiff
from potstill.sr.inference.planes import Progress, reader, writer
from potstill.sr.inference.tiling import Box, Frame, boxes, gates_recomputed
from potstill.sr.models.base import Upscaler
from potstill.sr.models.foreign import Foreign
from potstill.sr.models.imdn import IMDN

__all__ = ["stream"]


def stream(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model: Upscaler,
    *,
    tile: int = 256,
    device: str = "auto",
    progress: Progress = lambda done, total: None,
) -> Path:
    """Enlarge a TIFF of any size into a BigTIFF, in the memory of a tile.

    The gates of the whole image are found first, a block after another; then strips are written.
    Both are kept beside the result after each step: the same call goes on where one was killed, and
    gives the same bytes. What else the source carries is not kept.

    Args:
        source: TIFF with 8 or 16 bits, grey or RGB without alpha. A compressed one is unpacked into
            a file below ``TMPDIR``.
        target: TIFF to write; not compressed.
        model: IMDN, or a network without means over whole maps.
        tile: Side of tiles, pixels.
        device: Device.
        progress: Function of (done, total) strips.

    Raises:
        ConfigError: A network that shares more than gates, a target of another kind, or one that is
            there already.
        DataError: Another layout of the source.
    """
    source, target = Path(source), Path(target)
    if target.suffix.lower() not in (".tif", ".tiff") or target.exists():
        raise ConfigError(f"stream: target must be a new .tif, got {target}; choose another name")
    if model.stride != 1 or (isinstance(model, Foreign) and model.shares):
        raise ConfigError(
            f"stream: model must be IMDN, or see a bounded part of the image, got "
            f"{type(model).__name__}; use upscale"
        )
    runner = ready_runner(model, "torch", "fp32", device, compiled=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        samples = _samples(source, Path(folder, "unpacked"))
        run = _Stream(source, target, samples, runner, tile)
        with torch.inference_mode(), exact_floats(runner.device):
            run(progress)
    return target


class _Stream:
    """One enlargement, and what of it is done."""

    def __init__(
        self, source: Path, target: Path, samples: NDArray[Any], runner: Runner, tile: int
    ) -> None:
        self.samples, self.runner, self.tile, self.target = samples, runner, tile, target
        self.part = target.with_name(f".{target.name}.part")
        self.state = target.with_name(f".{target.name}.json")
        status = source.stat()
        about = hashlib.sha256(f"{source.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
        for value in runner.model.state_dict().values():
            about.update(value.cpu().contiguous().numpy().tobytes())
        self.done: dict[str, Any] = {"of": about.hexdigest(), "tile": tile, "gates": [], "rows": 0}
        if self.state.exists() and self.part.exists():
            found = json.loads(self.state.read_text(encoding="utf-8"))
            if {**self.done, "gates": 0, "rows": 0} == {**found, "gates": 0, "rows": 0}:
                self.done = found

    def __call__(self, progress: Progress) -> None:
        h, w, count = self.samples.shape
        scale, model = self.runner.model.scale, self.runner.model
        out = self._output((scale * h, scale * w, count))
        frame = Frame(
            Box(0, 0, h, w), 1, scale, reader(self.samples, self.runner.device),
            writer(out, True, count == 1),
        )  # fmt: skip
        network = self._network(frame)
        strips = list(boxes(Box(0, 0, h, 1), self.tile))
        for number, strip in enumerate(strips):
            if number >= self.done["rows"]:
                self._strip(network, frame, strip.top, strip.bottom, model.radius)
                out.flush()
                self._keep(rows=number + 1)
            progress(number + 1, len(strips))
        del out
        os.replace(self.part, self.target)
        self.state.unlink()

    def _network(self, frame: Frame) -> Callable[[Tensor], Tensor]:
        """The network with the gates of the whole image, where it has such."""
        stages = self.runner.stages
        if stages is None or not isinstance(self.runner.model, IMDN):
            return self.runner
        known = [torch.tensor(row, device=stages.device) for row in self.done["gates"]]
        gates = gates_recomputed(
            stages,
            frame,
            self.tile,
            lambda: None,
            known,
            lambda found: self._keep(gates=[row.tolist() for row in found]),
        )
        return lambda image: self.runner(image, gates)

    def _strip(
        self, network: Callable[[Tensor], Tensor], frame: Frame, top: int, bottom: int, radius: int
    ) -> None:
        """The tiles of a row, as the whole frame has them."""
        for core in boxes(Box(top, 0, bottom, frame.size.right), self.tile):
            around = core.grown(radius, frame.size)
            frame.put(core, around, network(frame.get(around)))

    def _output(self, shape: tuple[int, int, int]) -> np.memmap[Any, Any]:
        """The file of samples that are not compressed, all of it there from the start."""
        dtype = self.samples.dtype.newbyteorder("<")
        size = int(np.prod(shape)) * dtype.itemsize
        row = shape[1] * shape[2] * dtype.itemsize
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if not self.done["rows"]:
            with self.part.open("wb") as file:
                at = start_tiff(
                    file, shape, dtype, [row] * shape[0], 1, {}, None, packed=False
                )  # fmt: skip
                file.truncate(at + size)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), at, size)
        at = self.part.stat().st_size - size
        return np.memmap(self.part, dtype, "r+", at, shape)

    def _keep(self, **news: Any) -> None:
        self.done |= news
        with atomic(self.state) as temporary:
            temporary.write_text(json.dumps(self.done), encoding="utf-8")


def _samples(path: Path, unpacked: Path) -> NDArray[Any]:
    """Samples ``[H W 1]`` or ``[H W 3]`` of a TIFF, mapped."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            layout = page.dtype, page.samplesperpixel, page.planarconfig
            if page.dtype not in (np.uint8, np.uint16) or page.samplesperpixel not in (1, 3):
                raise DataError(
                    f"stream: {path} must be a TIFF of 8 or 16 bits, grey or RGB, got {layout}"
                )
            if page.is_memmappable:
                values: NDArray[Any] = tifffile.memmap(path, mode="r")
            else:
                values = page.asarray(out=str(unpacked))
            if page.samplesperpixel == 3 and page.planarconfig == 2:
                values = np.moveaxis(values, 0, -1)
            return values.reshape(*values.shape[:2], page.samplesperpixel)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise DataError(f"stream: {path} must be a whole TIFF, got: {error}") from error
