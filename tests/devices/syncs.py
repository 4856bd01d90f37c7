"""Where a training step makes the host wait for the device, by line of potstill.

On the pretended device every call that would wait is seen; on CUDA torch tells
(`torch.cuda.set_sync_debug_mode`). A step is what happens from a distiller's forward until its
optimizer has stepped: validation, which may wait, is between two of them.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import and_
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

if not torch.cuda.is_available():  # it changes torch, and older ones lack what it stands on
    from tests.devices import pretend

SOURCES = "/potstill/"


class Syncs:
    """Waits of each step, counted by place."""

    def __init__(self) -> None:
        self.steps: dict[str, list[Counter[str]]] = {}
        self.now: Counter[str] = Counter()
        self.name = ""

    def note(self) -> None:
        """The host waits now: count it for the innermost line of potstill."""
        frame = sys._getframe(1)
        while frame.f_back and SOURCES not in frame.f_code.co_filename:
            frame = frame.f_back
        name = frame.f_code.co_filename.partition(SOURCES)[2]
        # what is in no file of potstill is the backward, which has a thread of its own
        self.now[f"{name}:{frame.f_code.co_name}" if name else "backward"] += 1

    def forward(self, module: nn.Module, *_: Any) -> None:
        """A distiller begins a forward, and with it a step."""
        from potstill.core import Distiller

        if isinstance(module, Distiller):
            self.now, self.name = Counter(), type(module).__name__

    def stepped(self, *_: Any) -> None:
        """The optimizer has stepped."""
        if self.name:
            self.steps.setdefault(self.name, []).append(self.now)
            self.now, self.name = Counter(), ""

    def each_step(self) -> dict[str, Counter[str]]:
        """By distiller, what every step waits for: not what is made once, nor at an interval."""
        return {name: reduce(and_, steps) for name, steps in self.steps.items()}


@contextmanager
def counted(device: torch.device) -> Iterator[Syncs]:
    """Count the waits for ``device`` in the block."""
    syncs = Syncs()
    handles = [
        nn.modules.module.register_module_forward_pre_hook(syncs.forward),
        register_optimizer_step_post_hook(syncs.stepped),
    ]
    try:
        if device.type == "cuda":
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = lambda message, *_: (
                    syncs.note() if "synchronizing CUDA" in str(message) else None
                )
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    yield syncs
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        else:
            pretend.listeners.append(syncs.note)
            try:
                yield syncs
            finally:
                pretend.listeners.remove(syncs.note)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def any_gpu() -> Iterator[torch.device]:
    """The real one where there is one, else the pretended one."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    with pretend.pretend_gpu() as device:
        yield device
