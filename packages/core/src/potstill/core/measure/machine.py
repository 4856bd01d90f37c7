"""The limits of this machine, and how busy the rest of it is."""

from __future__ import annotations

import functools
import time

import psutil
import torch

from potstill.core.measure.timing import latency

__all__ = ["Load", "copy_bandwidth", "gemm_peak"]


def copy_bandwidth(device: str = "cpu", mebibytes: int = 256) -> float:
    """Measured bytes per second of a large copy, read and written bytes both counted.

    The floor of a memory-bound operation is its bytes moved over this. The best of several blocks,
    measured once a process for each number of torch threads.
    """
    return _copy_bandwidth(device, mebibytes, torch.get_num_threads())


def gemm_peak(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Measured floating-point operations per second of a square matrix product.

    The floor of a compute-bound operation is its operations (2 per multiply-add) over this. The
    best of several blocks, measured once a process for each number of torch threads.
    """
    return _gemm_peak(device, dtype, size, torch.get_num_threads())


@functools.cache
def _copy_bandwidth(device: str, mebibytes: int, threads: int) -> float:
    source = torch.ones(mebibytes * 2**18, device=device)
    target = torch.empty_like(source)
    best = min(latency(target.copy_, source, blocks=9).seconds)
    return 2 * source.numel() * source.element_size() / best


@functools.cache
def _gemm_peak(device: str, dtype: torch.dtype, size: int, threads: int) -> float:
    a = torch.ones(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    best = min(latency(torch.mm, a, a, out=out, blocks=7).seconds)
    return 2 * size**3 / best


class Load:
    """How busy the rest of the machine is while a ``with`` block runs.

    Attributes:
        average: Load average of the last minute when the block began (it lags, and holds our own
            work too).
        others: CPU time that all *other* processes took during the block, in cores, set at its end.
            Child processes of ours count as ours once they have ended.

    Example:
        >>> with Load() as load:
        ...     _ = sum(range(1000))
        >>> load.others >= 0
        True
    """

    def __init__(self) -> None:
        self.average = psutil.getloadavg()[0]
        self.others = 0.0

    def __enter__(self) -> Load:
        self.average = psutil.getloadavg()[0]
        self._start = self._read()
        return self

    def __exit__(self, *error: object) -> None:
        wall, busy, own = (
            end - start for start, end in zip(self._start, self._read(), strict=True)
        )
        self.others = max(0.0, (busy - own) / max(wall, 1e-6))

    @staticmethod
    def _read() -> tuple[float, float, float]:
        system, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = system.idle + getattr(system, "iowait", 0.0) + getattr(system, "guest", 0.0)
        mine = own.user + own.system
        mine += getattr(own, "children_user", 0.0) + getattr(own, "children_system", 0.0)
        return time.perf_counter(), sum(system) - idle, mine
