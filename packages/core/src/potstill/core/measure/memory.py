"""Peak memory of a call."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from potstill.core.errors import BackendError, ConfigError

__all__ = ["Memory", "peak_memory"]


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
