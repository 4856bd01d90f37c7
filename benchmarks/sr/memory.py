"""Memory: peak over the baseline of whole frames and of tiles, in a fresh process each."""

import time

import numpy as np
import torch

from potstill.core import peak_memory
from potstill.core.measure.bench import Figure, at_most, benchmark
from potstill.sr import IMDN, upscale

MIB, GIB = 2**20, 2**30


def prepare(height: int, width: int, options: dict):
    """A seeded image, and the network after a first small call."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    torch.manual_seed(0)
    model = IMDN(2).eval()
    upscale(image[:40, :40], model, tile="none")
    return image, model, options


def enlarge(image, model, options) -> None:
    upscale(image, model, **options)


def peak(height: int, width: int, **options) -> int:
    return peak_memory(enlarge, height, width, options, prepare=prepare).extra


@benchmark(
    budget=120,
    targets={
        "none": at_most(2.2 * 1024, "issue 5: untiled"),
        "exact": at_most(1.3 * 1024, "issue 5: exact"),
        "gates 128": at_most(350, "issue 5: gates, tiles of 128"),
    },
)
def lr_1020x678(quick: bool) -> dict[str, Figure]:
    """Peak over the baseline for IMDN x2 of 1020x678 pixels."""
    h, w = (120, 150) if quick else (678, 1020)
    return {
        "none": Figure(peak(h, w, tile="none") / MIB, "MiB"),
        "exact": Figure(peak(h, w, tile=128, tile_mode="exact") / MIB, "MiB"),
        "gates 128": Figure(peak(h, w, tile=128, tile_mode="gates") / MIB, "MiB"),
    }


def prepare_panorama(height: int, width: int, options: dict):
    image = np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (height // 200, width, 3))
    upscale(image[:40, :40], scale=2)
    return image, None, options


@benchmark(
    budget=900,
    targets={"peak": at_most(4.0, "issue 5: 30,000 x 2,000 within 4 GiB")},
)
def panorama(quick: bool) -> dict[str, Figure]:
    """A 30,000 x 2,000 image with our own x2 weights: peak of the whole process, and seconds."""
    h, w = (200, 400) if quick else (2000, 30_000)
    options = {"memory_limit": 3 * GIB, "tile_mode": "gates", "tile": 256}
    started = time.perf_counter()
    found = peak_memory(enlarge, h, w, options, prepare=prepare_panorama)
    return {
        "peak": Figure(found.peak / GIB, "GiB"),
        "seconds with start-up": Figure(time.perf_counter() - started, "s", timed=True),
    }
