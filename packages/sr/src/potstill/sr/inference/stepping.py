"""Tiles in step: networks with means over whole maps, exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from potstill.core import ConfigError
from potstill.sr.inference.tiling import Box, Frame, Step, boxes
from potstill.sr.models.foreign import Foreign
from potstill.sr.models.reductions import Reductions, Statistics

__all__ = ["check_tiles", "in_step"]

_MOST = 1024  # threads, each with the maps of a tile


def in_step(
    network: Callable[[Tensor], Tensor], frame: Frame, tile: int, margin: int, step: Step
) -> None:
    """Enlarge tiles that reach each mean over a whole map together and go on with the frame's.

    Each tile is a thread; one computes at a time, until it asks. Pixels count where they are in the
    tile's core. What is alive in a network at its means is kept for every tile.

    Args:
        network: Network.
        frame: Image.
        tile: Side of the tiles, feature pixels.
        margin: Feature pixels that an output sees to each side, means held fixed.
        step: Callable for progress.

    Raises:
        ConfigError: Too many tiles.
    """
    cores = list(boxes(frame.size, tile))
    if len(cores) > _MOST:
        raise ConfigError(
            f"upscale: tile must give at most {_MOST} tiles for a network with means over whole "
            f"maps, got {len(cores)}; use larger ones"
        )
    meeting = _Meeting(len(cores))

    def run(number: int, core: Box) -> None:
        try:
            with torch.inference_mode():
                around = core.grown(margin, frame.size)
                with meeting.turn:
                    with Reductions(lambda x: meeting.ask(number, _inside(x, core, around))):
                        large = network(frame.get(around))
                    frame.put(core, around, large)
                    step()
                    meeting.finish(number)
        except BaseException as error:
            meeting.fail(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(cores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if meeting.error is not None:
        raise meeting.error


def check_tiles(network: Callable[[Tensor], Tensor], model: Foreign) -> None:
    """Compare tiles with the whole of a long strip, once for each network.

    What a network makes of the size of its input, such as positions, is seen nowhere else.

    Raises:
        ConfigError: They differ.
    """
    if model.checked.done:
        return
    stride, thin = model.stride, -(-16 // model.stride)
    tile = thin + model.radius  # three tiles; an output of the middle one sees no end of the strip
    size = Box(0, 0, thin, 3 * tile)
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, stride * size.bottom, stride * size.right, generator=rng)
    image = image.to(next(model.parameters()).device)
    whole = network(image).clone()
    made = torch.empty_like(whole)

    def write(box: Box, large: Tensor) -> None:
        box.of(made).copy_(large)

    frame = Frame(
        size,
        stride,
        stride * model.scale,
        lambda box: box.of(image),
        write,
    )
    in_step(network, frame, tile, model.radius, lambda: None)
    gap = float((made - whole).abs().max() / whole.abs().max().clamp_min(1))
    if not gap <= 1e-4:
        raise ConfigError(
            f"upscale: tiles of {model.name} must equal the whole image, got a difference of "
            f"{gap:.1e}; use tile='none' or tile_mode='independent'"
        )
    model.checked.done = True


class _Meeting:
    """Where tiles leave their statistics and get those of the frame."""

    def __init__(self, count: int) -> None:
        self.turn = threading.Lock()
        self.error: BaseException | None = None
        self._asked, self._most = [0] * count, float("inf")
        self._parts: list[Statistics | None] = [None] * count
        self._all: Statistics | None = None
        self._barrier = threading.Barrier(count, self._merge)

    def ask(self, number: int, own: Statistics) -> Statistics:
        """The statistics of the frame, once all tiles have left theirs."""
        self._parts[number] = own
        self._asked[number] += 1
        self._compare()
        self.turn.release()
        try:
            self._barrier.wait()
        finally:
            self.turn.acquire()
        assert self._all is not None
        return self._all

    def finish(self, number: int) -> None:
        """Note that a tile is done: no other may ask more often."""
        self._most = min(self._most, self._asked[number])
        self._compare()

    def _compare(self) -> None:
        """Refuse what would wait for ever."""
        if max(self._asked) > self._most:
            raise ConfigError(
                "upscale: a network must take as many means of whole maps in every tile, got "
                f"{max(self._asked)} and {self._most}; use tile='none'"
            )

    def fail(self, error: BaseException) -> None:
        """End all tiles; the first error is the reason."""
        if self.error is None:
            self.error = error
        self._barrier.abort()

    def _merge(self) -> None:
        with torch.inference_mode():
            parts = [part for part in self._parts if part is not None]
            pixels = sum(part.pixels for part in parts)
            counts = torch.tensor([part.pixels for part in parts], device=parts[0].mean.device)
            weights = (counts.double() / pixels)[:, None, None]
            means = torch.stack([part.mean for part in parts]).double()
            spread = torch.stack([part.variance for part in parts]).double()
            mean = (means * weights).sum(0)
            variance = ((spread + (means - mean).square()) * weights).sum(0)
            peak = torch.stack([part.peak for part in parts]).amax(0)
            dtype = parts[0].mean.dtype
            self._all = Statistics(pixels, mean.to(dtype), variance.to(dtype), peak)


def _inside(x: Tensor, core: Box, around: Box) -> Statistics:
    """Statistics of the part of a map that is in the core of its tile.

    Raises:
        ConfigError: The map's pixels do not divide the tile.
    """
    inner = core.within(around)
    ratio = Fraction(x.shape[2], around.bottom - around.top)
    sides = [ratio * side for side in inner]
    if any(side.denominator != 1 for side in sides):
        raise ConfigError(
            "upscale: maps of this network must be whole multiples or parts of its input, got "
            f"{x.shape[2]} rows for {around.bottom - around.top}; use tile='none'"
        )
    part = Box(*map(int, sides)).of(x)
    variance, mean = torch.var_mean(part, dim=(2, 3), correction=0)
    return Statistics(part.shape[2] * part.shape[3], mean, variance, part.amax(dim=(2, 3)))
