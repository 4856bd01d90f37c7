"""Enlarging an image in parts: exactly, with gates known beforehand, or independently.

IMDN's attention uses the mean and the deviation of whole maps, so that each output pixel depends on
every input pixel, and tiles that are enlarged one by one disagree at their seams. Here tiles share
those statistics. Coordinates are feature pixels: input pixels, but for IMDN_AS and IMDN_RTE, whose
head works on 4x4 and 2x2 of them.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core import ConfigError, DataError
from potstill.sr.backends.staged import Staged, merged, moments

__all__ = [
    "SAMPLES",
    "Box",
    "Frame",
    "boxes",
    "exact",
    "feature_maps",
    "gated",
    "gates_from_sample",
    "gates_recomputed",
    "plain",
]

SAMPLES = 9
"""Tiles from which gates are estimated."""

Step = Callable[[], None]
"""Called after each unit of work, for progress."""


class Box(NamedTuple):
    """A rectangle of feature pixels, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    def grown(self, margin: int, frame: Box) -> Box:
        """Larger by ``margin`` to each side, but inside ``frame``.

        It ends where the image ends, so that the zero padding of a convolution falls exactly where
        it falls for the whole image.
        """
        return Box(
            max(self.top - margin, frame.top),
            max(self.left - margin, frame.left),
            min(self.bottom + margin, frame.bottom),
            min(self.right + margin, frame.right),
        )

    def times(self, factor: int) -> Box:
        """The same rectangle in finer pixels."""
        return Box(*(factor * side for side in self))

    def within(self, outer: Box) -> Box:
        """The same rectangle in coordinates that start at the corner of ``outer``."""
        top, left = outer.top, outer.left
        return Box(self.top - top, self.left - left, self.bottom - top, self.right - left)

    def of(self, image: Tensor) -> Tensor:
        """The part of ``[..., H, W]``, a view."""
        return image[..., self.top : self.bottom, self.left : self.right]


class Frame(NamedTuple):
    """An image to enlarge and where its enlargement goes, both by rectangles.

    Attributes:
        size: The whole image, in feature pixels.
        stride: Input pixels to a side of a feature pixel.
        enlarge: Output pixels to a side of a feature pixel.
        read: Gives a rectangle (input pixels) as ``[1 3 h w]`` in [0, 1].
        write: Takes a rectangle (output pixels) and its ``[1 3 h w]``.
    """

    size: Box
    stride: int
    enlarge: int
    read: Callable[[Box], Tensor]
    write: Callable[[Box, Tensor], None]

    def get(self, box: Box) -> Tensor:
        """The input of a rectangle of feature pixels."""
        return self.read(box.times(self.stride))

    def put(self, core: Box, around: Box, large: Tensor) -> None:
        """Write ``core`` out of the enlargement of ``around``."""
        inner = core.within(around).times(self.enlarge)
        self.write(core.times(self.enlarge), inner.of(large))


def boxes(frame: Box, tile: int) -> Iterator[Box]:
    """Squares of ``tile`` pixels that cover ``frame`` once, smaller ones at the far edges.

    Example:
        >>> [tuple(box) for box in boxes(Box(0, 0, 3, 5), 4)]
        [(0, 0, 3, 4), (0, 4, 3, 5)]
    """
    for top in range(frame.top, frame.bottom, tile):
        for left in range(frame.left, frame.right, tile):
            yield Box(top, left, min(top + tile, frame.bottom), min(left + tile, frame.right))


def plain(
    network: Callable[[Tensor], Tensor], frame: Frame, tile: int, margin: int, step: Step
) -> None:
    """Enlarge tiles one by one with ``margin`` feature pixels around them, which are cut off.

    Exact when the network sees no further than ``margin``: without attention or with known gates.
    """
    for core in boxes(frame.size, tile):
        around = core.grown(margin, frame.size)
        large = network(frame.get(around))
        frame.put(core, around, large)
        step()


def gated(
    network: Callable[[Tensor, Tensor], Tensor],
    gates: Tensor,
    frame: Frame,
    tile: int,
    margin: int,
    step: Step,
) -> None:
    """Enlarge tiles that share ``gates`` [blocks channels]: no seams from ``radius`` on."""
    plain(lambda part: network(part, gates), frame, tile, margin, step)


def exact(stages: Staged, frame: Frame, tile: int, step: Step, *, mapped: bool = False) -> Tensor:
    """Enlarge in tiles what equals the whole image: all tiles finish a block before the next.

    Each block runs over the tiles twice: first its convolutions, with a margin of 4, and the sums
    for the statistics in float64; then, with the gate known, the point-wise rest in place. Three
    maps of the image are kept (12 bytes a channel and pixel in float32) and one tile.

    Args:
        stages: Network.
        frame: Image.
        tile: Side of the tiles, feature pixels.
        step: Callable for progress.
        mapped: Keep the maps on the disk.

    Returns:
        The gates, [blocks channels].

    Raises:
        DataError: The disk has no room for them.
    """
    with feature_maps(stages, frame.size.bottom, frame.size.right, mapped=mapped) as maps:
        x, z, total = maps
        rows = [slice(top, top + tile) for top in range(0, frame.size.bottom, tile)]
        for core in boxes(frame.size, tile):
            core.of(x).copy_(_head(stages, frame, core))
        for strip in rows:
            total[:, :, strip].copy_(stages.collected(_here(stages, x[:, :, strip])))
        gates = []
        for k, block in enumerate(stages.blocks):
            found = []
            for core in boxes(frame.size, tile):
                around = core.grown(block.radius, frame.size)
                part = stages.distill(k, _own(_here(stages, around.of(x))))
                kept = _own(core.within(around).of(part))
                core.of(z).copy_(kept)
                found.append(moments(kept))
                step()
            gates.append(stages.gate(k, merged(found)))
            for strip in rows:
                parts = [_here(stages, part[:, :, strip]) for part in (x, z, total)]
                stages.collect_(parts[2], k, stages.fuse_(parts[0], k, parts[1], gates[-1]))
                for part, whole in zip(parts[::2], (x, total), strict=True):
                    if part.device != whole.device:
                        whole[:, :, strip].copy_(part)
        for core in boxes(frame.size, tile):
            around = core.grown(2, frame.size)
            shallow = _head(stages, frame, around)
            image = frame.get(around)
            deep = _here(stages, around.of(total)).clone(memory_format=torch.channels_last)
            frame.put(core, around, stages.tail(deep, shallow, image))
            step()
        return torch.stack(gates)


@contextmanager
def feature_maps(
    stages: Staged, height: int, width: int, *, mapped: bool
) -> Iterator[list[Tensor]]:
    """Three maps ``[1 C H W]`` in channels_last: on the device, or in files that end with it."""
    shape = (1, height, width, stages.model.channels)
    if not mapped:
        yield [
            torch.empty(shape, dtype=stages.dtype, device=stages.device).permute(0, 3, 1, 2)
            for _ in range(3)
        ]
        return
    count = math.prod(shape)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        size, free = 3 * count * stages.dtype.itemsize, shutil.disk_usage(folder).free
        if size > free:
            raise DataError(
                f"upscale: exact tiles need {size / 2**30:.1f} GiB on the disk, got "
                f"{free / 2**30:.1f} GiB free in {tempfile.gettempdir()}; set TMPDIR, or "
                "tile_mode='recompute'"
            )
        maps = [_mapped(Path(folder, str(number)), count, stages.dtype) for number in range(3)]
        yield [values.view(shape).permute(0, 3, 1, 2) for values in maps]
        del maps


def _mapped(path: Path, count: int, dtype: torch.dtype) -> Tensor:
    """Values in a file; the disk sets them aside, since a page without space kills the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype)


def _here(stages: Staged, part: Tensor) -> Tensor:
    """A part of a map on the device that computes: itself where it lies there."""
    return part.to(stages.device)


def gates_recomputed(
    stages: Staged,
    frame: Frame,
    tile: int,
    step: Step,
    known: Sequence[Tensor] = (),
    keep: Callable[[list[Tensor]], None] = lambda gates: None,
) -> Tensor:
    """The gates of the whole image in the memory of one tile.

    Gate k needs blocks 1 to k of every tile, so the network runs about ``blocks / 2`` times.

    Args:
        stages: Network.
        frame: Image.
        tile: Side of the tiles, feature pixels.
        step: Callable for progress.
        known: Gates of the first blocks, from an earlier call.
        keep: Called with all gates after each one that is found.

    Returns:
        [blocks channels].
    """
    gates = list(known)
    for k, block in list(enumerate(stages.blocks))[len(gates) :]:
        found = []
        for core in boxes(frame.size, tile):
            around = core.grown(1 + block.radius * (k + 1), frame.size)
            x = stages.head(frame.get(around))
            for earlier, gate in enumerate(gates):
                stages.fuse_(x, earlier, stages.distill(earlier, x), gate)
            z = stages.distill(k, x)
            found.append(moments(_own(core.within(around).of(z))))
            step()
        gates.append(stages.gate(k, merged(found)))
        keep(gates)
    return torch.stack(gates)


def gates_from_sample(
    stages: Staged, frame: Frame, tile: int, step: Step, samples: int = SAMPLES, margin: int = 16
) -> Tensor:
    """Gates from tiles spread evenly over the image, as if they were all of it.

    Args:
        stages: Network.
        frame: Image.
        tile: Side of the tiles, feature pixels.
        step: Callable for progress.
        samples: Number of tiles; all of them when the image has no more.
        margin: Feature pixels around a tile that are computed and not counted.

    Returns:
        [blocks channels].
    """
    every = list(boxes(frame.size, tile))
    count = min(samples, len(every))
    cores = [every[int((i + 0.5) * len(every) / count)] for i in range(count)]
    arounds = [core.grown(margin, frame.size) for core in cores]
    streams = [stages.head(frame.get(around)) for around in arounds]
    gates = []
    for k in range(len(stages.blocks)):
        found = []
        parts = [stages.distill(k, x) for x in streams]
        for core, around, part in zip(cores, arounds, parts, strict=True):
            found.append(moments(_own(core.within(around).of(part))))
            step()
        gates.append(stages.gate(k, merged(found)))
        for x, z in zip(streams, parts, strict=True):
            stages.fuse_(x, k, z, gates[-1])
    return torch.stack(gates)


def check_gates(gates: Tensor | Sequence[Sequence[float]], stages: Staged) -> Tensor:
    """Gates that a user gave, as a tensor of the right shape.

    Raises:
        ConfigError: Another shape than [blocks, channels].
    """
    wanted = [len(stages.blocks), stages.model.channels]
    given = torch.as_tensor(gates, dtype=torch.float32, device=stages.device)
    if list(given.shape) != wanted:
        raise ConfigError(
            f"upscale: gates must be {wanted}, one row a block, got {list(given.shape)}; take "
            "them from the `gates` of another result of this model"
        )
    return given


def _own(part: Tensor) -> Tensor:
    """A part of a map as a map of its own."""
    return part.contiguous(memory_format=torch.channels_last)


def _head(stages: Staged, frame: Frame, core: Box) -> Tensor:
    """Shallow features of a rectangle: the head sees one feature pixel to each side."""
    around = core.grown(1, frame.size)
    features = stages.head(frame.get(around))
    return core.within(around).of(features)
