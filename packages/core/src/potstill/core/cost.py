"""Cost: what a student takes (parameters, multiply-adds, seconds, bytes), and the machine's limits.

Two questions come with each figure: what it is blind to (said in the docstrings), and whether the
machine was free enough to measure (:class:`Load`).
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from potstill.core.errors import BackendError, ConfigError

__all__ = [
    "Load",
    "Memory",
    "Timing",
    "copy_bandwidth",
    "count_macs",
    "count_parameters",
    "gemm_peak",
    "latency",
    "peak_memory",
]

Clock = Literal["wall", "cpu"]


def _product(_: Any, a: torch.Size, b: torch.Size, **__: Any) -> int:
    """Operations of a product of shapes [... n m] and [... m k]."""
    return 2 * a.numel() * b[-1]


# torch's counter knows products that return their result, not those that overwrite an operand.
_IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameters; shared ones count once, buffers do not count.

    Args:
        model: Any module.
        trainable: Count only those that require a gradient.

    Example:
        >>> count_parameters(nn.Linear(4, 2))
        10
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def count_macs(model: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Multiply-adds of one forward pass, by torch's own counter (its operations halved).

    Counted: matrix products, convolutions and attention, in whatever form the model calls them.
    **Not** counted: element-wise operations, normalisation, activations, pooling and resampling,
    gathers, scatters and sparse products (so a graph convolution counts as its dense layers only),
    and custom or Triton kernels. A module runs in eval mode without gradients and is put back.

    Args:
        model: A module or a function of tensors.
        *args: Its inputs; the batch counts, so pass one sample for a figure per sample.
        **kwargs: The same by name.

    Example:
        >>> count_macs(nn.Linear(4, 2), torch.zeros(3, 4))
        24
    """
    modes = []
    if isinstance(model, nn.Module):
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
    # The fused inference path of nn.TransformerEncoder is one operator that the counter cannot see.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Attention as plain products: older counters do not know its fused operators either.
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter,
        ):
            model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one value for each timed block.

    Attributes:
        seconds: Block time divided by its calls, in the order measured.
        calls: Calls in a block.
    """

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds)

    @property
    def p20(self) -> float:
        """The 20th percentile, seconds per call."""
        return self.quantile(0.2)

    @property
    def p80(self) -> float:
        """The 80th percentile, seconds per call."""
        return self.quantile(0.8)

    def quantile(self, share: float) -> float:
        """Linear interpolation between the order statistics, ``share`` in [0, 1]."""
        ordered = sorted(self.seconds)
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    def __str__(self) -> str:
        """Median and spread in milliseconds."""
        return f"{self.median * 1e3:.4g} ms ({self.p20 * 1e3:.4g} to {self.p80 * 1e3:.4g})"


def latency(
    fn: Callable[..., Any],
    *args: Any,
    blocks: int = 20,
    block_seconds: float = 0.05,
    warmup: int = 3,
    clock: Clock = "wall",
    **kwargs: Any,
) -> Timing:
    """Time ``fn(*args)``: warm-up, then blocks of calls that are long enough for the clock.

    CUDA is synchronised around each block when it is in use. Gradients and eval mode are the
    caller's business. To compare two implementations use ``potstill.core.bench`` instead: machines
    drift, and only interleaved pairs see the same drift.

    Args:
        fn: What to time.
        *args: Its arguments.
        blocks: How many timed blocks; the spread is over these.
        block_seconds: Least duration of a block in seconds; decides the calls in a block.
        warmup: Calls before anything is timed.
        clock: "wall", or "cpu" for the CPU time of this process (all threads added up), which other
            processes disturb less.
        **kwargs: Keyword arguments of ``fn``.

    Raises:
        ConfigError: ``blocks`` < 1, ``block_seconds`` <= 0, or an unknown clock.

    Example:
        >>> latency(sum, [1, 2, 3], blocks=3, block_seconds=0.001).median < 0.01
        True
    """
    if blocks < 1 or block_seconds <= 0:
        raise ConfigError(
            f"latency: blocks and block_seconds must be positive, got {blocks} and {block_seconds}"
        )
    call = functools.partial(fn, *args, **kwargs)
    for _ in range(warmup):
        call()
    calls = calls_for(call, block_seconds, clock)
    seconds = tuple(time_block(call, calls, clock) / calls for _ in range(blocks))
    return Timing(seconds, calls)


def time_block(call: Callable[[], Any], calls: int, clock: Clock = "wall") -> float:
    """Seconds that ``calls`` calls take together, with the garbage collector held still."""
    now = _now(clock)
    collecting = gc.isenabled()
    gc.disable()
    try:
        _synchronize()
        start = now()
        for _ in range(calls):
            call()
        _synchronize()
        return now() - start
    finally:
        if collecting:
            gc.enable()


def calls_for(call: Callable[[], Any], seconds: float, clock: Clock = "wall") -> int:
    """How many calls fill a block of ``seconds``."""
    calls = 1
    while True:
        taken = time_block(call, calls, clock)
        if taken >= seconds:
            return calls
        # At most tenfold at once: the first blocks are the least reliable ones.
        wanted = calls * seconds / max(taken, 1e-9)
        calls = max(calls + 1, min(10 * calls, int(1.05 * wanted) + 1))


def _now(clock: Clock) -> Callable[[], float]:
    if clock == "wall":
        return time.perf_counter
    if clock == "cpu":
        return time.process_time
    raise ConfigError(f"latency: clock must be 'wall' or 'cpu', got {clock!r}")


def _synchronize() -> None:
    if torch.cuda.is_initialized():  # asks, and does not start it
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Memory:
    """Memory of one call, in bytes.

    Attributes:
        before: In use just before the call (inputs, and on a CPU the whole process).
        peak: The most that was in use at any moment of the call.
    """

    before: int
    peak: int

    @property
    def extra(self) -> int:
        """What the call needed on top of what was there."""
        return max(0, self.peak - self.before)

    def __str__(self) -> str:
        """The extra memory in MiB."""
        return f"{self.extra / 2**20:.1f} MiB over {self.before / 2**20:.1f} MiB"


def peak_memory(
    fn: Callable[..., Any],
    *args: Any,
    prepare: Callable[..., Any] | None = None,
    device: str = "cpu",
) -> Memory:
    """Peak memory of one call ``fn(*args)``.

    On the CPU the call runs in a fresh child process, because the peak of a process never falls:
    its resident size just before is compared with its high-water mark after. First-call costs
    (thread pools, kernels' workspaces) are part of the figure; a ``prepare`` that makes a small
    call first takes them out. On CUDA the call runs here, under torch's allocator counters, which
    do not see memory taken by other libraries.

    Args:
        fn: A function that can be imported by name (no lambda, no local function).
        *args: Its arguments; they must pickle.
        prepare: ``prepare(*args)`` returns the tuple of arguments for ``fn``, made in the child
            before the measurement, so that large inputs neither travel nor count.
        device: "cpu" or a CUDA device.

    Raises:
        ConfigError: ``fn``, ``prepare`` or an argument cannot be sent to the child.
        BackendError: CUDA is asked for and absent, or the child failed (its error is quoted).
    """
    if torch.device(device).type != "cpu":
        return _cuda_memory(fn, args, prepare, device)
    try:
        job = pickle.dumps((fn, args, prepare, torch.get_num_threads()))
    except Exception as error:
        raise ConfigError(
            f"peak_memory: fn and its arguments must be importable by name and picklable, got "
            f"{fn!r} ({error}); define the function at the top of a module"
        ) from error
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(job, sender), daemon=True)
    child.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        child.join()
        result = f"it ended with exit code {child.exitcode}; was memory short?"
    child.join()
    receiver.close()
    if isinstance(result, str):
        raise BackendError(f"peak_memory: the child process must return, got an error: {result}")
    return Memory(*result)


def _measure(job: bytes, sender: Connection) -> None:
    """Run in the child: report (before, peak) in bytes, or the error as text."""
    try:
        fn, args, prepare, threads = pickle.loads(job)
        torch.set_num_threads(threads)
        with torch.no_grad():
            arguments = args if prepare is None else prepare(*args)
        gc.collect()
        _reset_high_water()
        before = psutil.Process().memory_info().rss
        fn(*arguments)
        sender.send((before, max(before, _high_water())))
    except BaseException as error:
        sender.send(f"{type(error).__name__}: {error}")
    finally:
        sender.close()


def _reset_high_water() -> None:
    """Forget the peak of the imports where the system allows it (Linux, proc(5))."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _high_water() -> int:
    """Peak resident bytes of this process.

    On Linux from VmHWM: ``ru_maxrss`` of a fresh child starts at the size of the parent that forked
    it, and would hide everything smaller.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cuda_memory(
    fn: Callable[..., Any], args: Any, prepare: Callable[..., Any] | None, device: str
) -> Memory:
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise BackendError(
            f"peak_memory: device must be cpu or an available CUDA device, got {device!r}; "
            "install a CUDA build of torch and a driver, or use device='cpu'"
        )
    arguments = args if prepare is None else prepare(*args)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    fn(*arguments)
    torch.cuda.synchronize(device)
    return Memory(before, torch.cuda.max_memory_allocated(device))


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
