"""Several processes on one machine without `torchrun`: for tests, and for trying things out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

__all__ = ["run_ranks"]


def run_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """Call ``function(*args)`` in ``world`` gloo processes on the CPU, one thread each.

    The processes find each other through a file, so that no ports collide, and leave without
    running exit handlers, which torch's gloo may abort in. ``function`` makes its own `Engine`.

    Args:
        function: Importable by name; returns something that `torch.save` can write.
        world: Number of processes.
        *args: What they all get.

    Returns:
        The results, in the order of the ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Forked children share the parent's imports: a second instead of several.
        start_processes(_rank, (function, world, folder, args), nprocs=world, start_method="fork")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(rank: int, function: Callable[..., Any], world: int, folder: str, args: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",  # accelerate wants one, though the file is what is used
        MASTER_PORT="0",
        OMP_NUM_THREADS="1",
    )
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
