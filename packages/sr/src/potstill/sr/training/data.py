"""Training data: aligned patches of any photographs, with MATLAB's bicubic as the degradation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import ConfigError, DataError, atomic, fingerprint, generator, reading
from potstill.core.engine import Shard, sketch
from potstill.sr.images.reading import find_photographs, read_image
from potstill.sr.images.resize import imresize, reduced

__all__ = ["Pair", "Patches", "degrade", "prepare"]

Bytes = NDArray[np.uint8]


class Pair(NamedTuple):
    """An image and its low-resolution version, bytes ``[H W 3]``; may lie on disk (memory-mapped).

    Attributes:
        lr: ``[h w 3]``.
        hr: ``[s*h s*w 3]``.
    """

    lr: Bytes
    hr: Bytes


class Patches:
    """Random aligned patches: a source for ``fit``, a pure function of (seed, step).

    Processes share what is drawn: two with a batch of 4 train as one with a batch of 8.

    Every position of every image is equally likely, and so are the eight orientations. Positions
    are drawn with replacement, so there is no epoch: give a budget in steps or seconds.

    Args:
        pairs: Photographs, from `degrade` or `prepare`.
        patch: Side of the low-resolution patches, pixels.
        batch: Patches per process and step.
        seed: Seed of positions and orientations.

    Raises:
        ConfigError: No image is at least as large as a patch.

    Example:
        >>> photograph = np.zeros((40, 60, 3), np.uint8)
        >>> lr, hr = Patches(degrade([photograph], scale=2), patch=8, batch=4)(0, 0, 1)
        >>> lr.shape, hr.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3, 16, 16]))
    """

    def __init__(
        self, pairs: Sequence[Pair], *, patch: int = 24, batch: int = 16, seed: int = 0
    ) -> None:
        self.pairs = [p for p in pairs if min(p.lr.shape[:2]) >= patch]
        if not self.pairs:
            raise ConfigError(
                f"Patches: patch must fit into an image, got {patch} and {len(pairs)} smaller "
                "images; lower it"
            )
        self.patch, self.batch, self.seed = patch, batch, seed
        self.scale = self.pairs[0].hr.shape[0] // self.pairs[0].lr.shape[0]
        areas = [(p.lr.shape[0] - patch + 1) * (p.lr.shape[1] - patch + 1) for p in self.pairs]
        self.weights = torch.tensor(areas, dtype=torch.float64)

    def __call__(
        self, step: int, rank: int, world: int
    ) -> tuple[Float[Tensor, "batch 3 h w"], Float[Tensor, "batch 3 H W"]]:
        """``(lr, hr)`` in [0, 1] for a step of one of ``world`` processes."""
        rng, total = generator("patches", self.seed, step, 0, 1), self.batch * world
        chosen = torch.multinomial(self.weights, total, replacement=True, generator=rng)
        draws = torch.rand(total, 3, generator=rng, dtype=torch.float64).tolist()
        drawn = list(zip(chosen, draws, strict=True))[rank::world]
        cuts = [self._cut(int(index), *draw) for index, draw in drawn]
        stacks = (torch.from_numpy(np.stack(side)) for side in zip(*cuts, strict=True))
        lr, hr = (stack.permute(0, 3, 1, 2).float().div_(255) for stack in stacks)
        return lr, hr

    def steps_per_epoch(self, world: int) -> None:
        """There is no epoch."""

    def stream(self, start: int, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one process from batch ``start`` on."""
        return (self(step, shard.rank, shard.world) for step in count(start))

    def fingerprint(self) -> str:
        """Sizes, seed, and a digest of a sample of the images."""
        about = f"{len(self.pairs)} images, {self.batch} patches of {self.patch}, seed {self.seed}"
        return f"{about}: {sketch(self.pairs)}"

    def _cut(self, index: int, down: float, right: float, turn: float) -> tuple[Bytes, Bytes]:
        """A patch at relative position (down, right) in one of eight orientations."""
        lr, hr = self.pairs[index]
        p, s = self.patch, self.scale
        top = int(down * (lr.shape[0] - p + 1))
        left = int(right * (lr.shape[1] - p + 1))
        small = lr[top : top + p, left : left + p]
        large = hr[s * top : s * (top + p), s * left : s * (left + p)]
        orientation = int(8 * turn)
        return _turned(small, orientation), _turned(large, orientation)


def _turned(image: Bytes, orientation: int) -> Bytes:
    if orientation & 1:
        image = image[::-1]
    if orientation & 2:
        image = image[:, ::-1]
    return image.transpose(1, 0, 2) if orientation & 4 else image


def degrade(images: Iterable[Bytes], scale: int, zooms: Sequence[float] = (1.0,)) -> list[Pair]:
    """Pairs of images and their MATLAB-bicubic reductions, in memory.

    Args:
        images: RGB images as bytes.
        scale: Factor; images are cropped to a multiple of it.
        zooms: Sizes of the same images: shrunk photographs are sharper, and more data.

    Raises:
        ConfigError: ``scale`` or a zoom is out of range.
    """
    if scale < 1 or any(not 0 < zoom <= 1 for zoom in zooms):
        raise ConfigError(
            f"degrade: scale must be at least 1 and zooms in (0, 1], got {scale} and {zooms}"
        )
    sizes = (image if zoom == 1 else imresize(image, zoom) for image in images for zoom in zooms)
    return [Pair(*reduced(image, scale)) for image in sizes]


def prepare(
    folder: str | os.PathLike[str],
    scale: int,
    cache: str | os.PathLike[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Pair]:
    """Pairs of all photographs below ``folder``, decoded once into ``cache`` and memory-mapped.

    Reading a patch then touches a few pages, whatever the size of the data set. The cache holds
    bytes: 12 bytes a pixel of the photographs would be 7 GB for DIV2K; delete it at any time.

    Args:
        folder: Tree of images, or DIV2K's layout.
        scale: Factor.
        cache: Folder for ``<digest>.lr.npy`` and ``<digest>.hr.npy``.
        progress: Function of (done, total).

    Raises:
        DataError: No images, or one that cannot be read.
    """
    files, pairs = find_photographs(folder), []
    for done, file in enumerate(files):
        progress(done, len(files))
        status = file.stat()
        key = fingerprint(str(file.resolve()), status.st_size, status.st_mtime_ns, scale)[:24]
        paths = [Path(cache, f"{key}.{side}.npy") for side in Pair._fields]
        if not all(path.exists() for path in paths):
            for path, array in zip(paths, reduced(read_image(file).rgb8(), scale), strict=True):
                with atomic(path) as temporary:
                    np.save(temporary, array)
        pairs.append(Pair(*map(_cached, paths)))
    return pairs


def _cached(path: Path) -> Bytes:
    with reading(path, "a photograph that potstill cached (deleted, it is made again)"):
        held: Bytes = np.load(path, mmap_mode="r")
        if held.dtype != np.uint8 or held.ndim != 3 or held.shape[2] != 3:
            raise DataError(f"it must hold bytes [H W 3], got {held.dtype} {[*held.shape]}")
    return held
