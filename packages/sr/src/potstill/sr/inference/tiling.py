"""Enlarging an image in parts: exactly, with gates known beforehand, or independently.

IMDN's attention uses the mean and the deviation of whole maps, so that each output pixel depends on
every input pixel, and tiles that are enlarged one by one disagree at their seams. Here tiles share
those statistics. Coordinates are feature pixels: input pixels, but for IMDN_AS and IMDN_RTE, whose
head works on 4x4 and 2x2 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core import ConfigError
from potstill.sr.backends.staged import Staged, merged, moments

__all__ = [
    "SAMPLES",
    "Box",
    "Frame",
    "boxes",
    "exact",
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


def exact(stages: Staged, frame: Frame, tile: int, step: Step) -> Tensor:
    """Enlarge in tiles what equals the whole image: all tiles finish a block before the next.

    Each block runs over the tiles twice: first its convolutions, with a margin of 4, and the sums
    for the statistics in float64; then, with the gate known, the point-wise rest in place. Three
    maps of the image are kept (12 bytes a channel and pixel in float32) and one tile.

    Returns:
        The gates, [blocks channels].
    """
    shape = (1, stages.model.channels, frame.size.bottom, frame.size.right)
    x, z = (
        torch.empty(
            shape, dtype=stages.dtype, device=stages.device, memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    for core in boxes(frame.size, tile):
        core.of(x).copy_(_head(stages, frame, core))
    total = stages.collected(x)
    gates = []
    for k, block in enumerate(stages.blocks):
        found = []
        for core in boxes(frame.size, tile):
            around = core.grown(block.radius, frame.size)
            part = stages.distill(k, _own(around.of(x)))
            kept = _own(core.within(around).of(part))
            core.of(z).copy_(kept)
            found.append(moments(kept))
            step()
        gates.append(stages.gate(k, merged(found)))
        stages.collect_(total, k, stages.fuse_(x, k, z, gates[-1]))
    del x, z
    for core in boxes(frame.size, tile):
        around = core.grown(2, frame.size)
        shallow = _head(stages, frame, around)
        image = frame.get(around)
        large = stages.tail(
            around.of(total).clone(memory_format=torch.channels_last), shallow, image
        )
        frame.put(core, around, large)
        step()
    return torch.stack(gates)


def gates_recomputed(stages: Staged, frame: Frame, tile: int, step: Step) -> Tensor:
    """The gates of the whole image in the memory of one tile.

    Gate k needs blocks 1 to k of every tile, so the network runs about ``blocks / 2`` times.

    Returns:
        [blocks channels].
    """
    gates: list[Tensor] = []
    for k, block in enumerate(stages.blocks):
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
