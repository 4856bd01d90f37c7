"""How an image will be enlarged: whole, or in which tiles, decided before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from potstill.sr.config import Mode, Precision
from potstill.sr.inference.tiling import SAMPLES
from potstill.sr.models.base import Upscaler
from potstill.sr.models.imdn import IMDN

__all__ = ["Plan", "free_memory", "plan"]

_TILE = 256
_WHOLE_MAPS = 8  # maps alive at the peak of a pass over the whole image, measured
_EXACT_MAPS = 3
_TILE_MAPS = 7
_LIBRARIES = 48 * 2**20  # what libraries take for themselves while they compute tiles, measured


@dataclass(frozen=True)
class Plan:
    """How an image will be enlarged.

    Attributes:
        mode: Way in which statistics are shared.
        tile: Side of the tiles, feature pixels; 0 without tiles.
        bytes: Estimated memory on top of the input.
        mapped: Feature maps of "exact" lie on the disk.
    """

    mode: Mode
    tile: int
    bytes: int
    mapped: bool = False


def plan(
    network: Upscaler,
    height: int,
    width: int,
    *,
    tile: int | Literal["auto", "none"] = "auto",
    tile_mode: Mode | Literal["auto"] = "auto",
    memory_limit: int | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    stages: bool = True,
) -> Plan:
    """Decide on mode and tile; the picture is the same whatever memory there is.

    Args:
        network: Network of the family.
        height: Height of the input, pixels.
        width: Width of the input, pixels.
        tile: Side of the tiles, "auto" or "none", as in `upscale`.
        tile_mode: Way in which tiles share statistics, as in `upscale`.
        memory_limit: Memory in bytes; by default half of what is free on the device.
        precision: Numeric precision.
        device: Device that computes.
        stages: Ability of the backend to run block by block, which "exact" needs.

    Example:
        >>> plan(IMDN(2), 100, 100, tile="none").mode
        'none'
        >>> plan(IMDN(2), 4000, 3000, memory_limit=2**34).mode
        'exact'
    """
    limit = memory_limit or free_memory(torch.device(device)) // 2
    stride, scale = network.stride, network.scale
    area = math.ceil(height / stride) * math.ceil(width / stride)
    cell = network.channels * (2 if precision in ("bf16", "fp16") else 4)
    output = 12 * height * width * scale**2

    def need(mode: str, side: int, *, mapped: bool = False) -> int:
        if mode == "none":
            return area * cell * _WHOLE_MAPS + output
        staged = mode == "exact" and isinstance(network, IMDN)
        margin = 2 * (4 if staged else network.radius)
        work = min((side + margin) ** 2, area) * cell * _TILE_MAPS
        if mode == "gates":  # two maps of each sampled tile, and three of the one that is computed
            sample = (side + 32) ** 2
            samples = min(SAMPLES, math.ceil(height / side) * math.ceil(width / side)) * sample
            work = max(work, (2 * min(samples, 5 * area // 4) + 3 * min(sample, area)) * cell)
        maps = area * cell * _EXACT_MAPS if staged and not mapped else 0
        return work + maps + output // 4 + _LIBRARIES

    if tile == "none" or tile_mode == "none":
        return Plan("none", 0, need("none", 0))
    side = _TILE if tile == "auto" else tile
    if tile == "auto" and tile_mode == "auto" and need("none", 0) <= limit:
        return Plan("none", 0, need("none", 0))
    if tile_mode != "auto" and tile_mode != "exact":  # mypy sees which is left
        return Plan(tile_mode, side, need(tile_mode, side))
    if isinstance(network, IMDN) and not stages:
        return Plan("recompute", side, need("recompute", side))
    mapped = isinstance(network, IMDN) and need("exact", side) > limit
    return Plan("exact", side, need("exact", side, mapped=mapped), mapped)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
