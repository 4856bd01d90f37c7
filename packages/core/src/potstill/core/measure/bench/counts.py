"""What a call costs besides time: operations, and memory at its highest."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from potstill.core.measure.bench.registry import Figure, Pair

__all__ = ["counted", "operations", "peak_allocated"]


def counted(pair: Pair, device: str) -> dict[str, Figure]:
    """Operations and peak memory of one call of each side; what nothing was seen of is left out.

    A side that cannot be counted, because a compiled or foreign kernel refuses torch's modes, costs
    its figure and not the benchmark: the times are measured already.
    """
    figures = {}
    for side, call in (("", pair.ours), (", baseline", pair.baseline)):
        try:
            figures["flops" + side] = Figure(operations(call) / 1e9, "GFLOP")
            figures["peak" + side] = Figure(peak_allocated(call, device) / 2**20, "MiB")
        except Exception as error:
            warnings.warn(f"bench: {side or 'ours'} was timed, not counted: {error}", stacklevel=2)
    return {name: figure for name, figure in figures.items() if figure.value}


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations that torch's counter sees in one call, 2 per multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def peak_allocated(call: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes that one call holds at its highest, over what was held before it.

    Counted by torch's allocators; what numpy or native code takes is not seen. Use
    :func:`potstill.core.measure.memory.peak_memory` where that matters.
    """
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it complains of a missing GPU
    # One cycle, whose events torch 2.10 warns of losing unless told to keep them.
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        call()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"  # the profiler tells it in no other public way
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    totals = [0] + [change["Total Allocated"] for change in changes if not change["Device Type"]]
    first = next((c["Total Allocated"] - c["Bytes"] for c in changes if not c["Device Type"]), 0)
    return max(totals) - first if changes else 0
