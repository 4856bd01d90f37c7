"""The ``triton`` backend: one program for each level and block of points.

Needs no CUDA compiler. The gradient of the table is summed with atomics, so its last bits depend
on the order of the programs.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from potstill.nerf.encodings.levels import Levels

__all__ = ["encode", "missing"]

_BLOCK = 128


def missing() -> str:
    """Why Triton kernels cannot run here; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton (Linux; comes with torch for CUDA)"
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return ""
    return "torch finds no CUDA device; use backend 'cpu' or 'torch'"


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """As in the reference, in float32."""
    y: Tensor = _Encode.apply(x, table, levels)
    return y


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, levels: Levels) -> Tensor:
        x, table = x.detach().float().contiguous(), table.detach().float().contiguous()
        y = torch.empty(len(x), levels.width, device=x.device)
        _launch("forward", levels, x, table, y)
        ctx.save_for_backward(x, table)
        ctx.levels = levels
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, table = ctx.saved_tensors
        dy = dy.float().contiguous()
        dx = dtable = None
        if ctx.needs_input_grad[1]:
            dtable = torch.zeros_like(table)
            _launch("backward_table", ctx.levels, x, dy, dtable)
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x)
            _launch("backward_input", ctx.levels, x, table, dy, dx)
        return dx, dtable, None


def _launch(kernel: str, levels: Levels, x: Tensor, *tensors: Tensor) -> None:
    if not len(x):
        return
    scale, integers = _level_tensors(levels, x.device)
    grid = (-(-len(x) // _BLOCK), len(levels.scale))
    _kernels()[kernel][grid](
        *(x, *tensors, scale, integers, len(x), len(levels.scale)),
        F=levels.features,
        BLOCK=_BLOCK,
    )


@cache
def _level_tensors(levels: Levels, device: torch.device) -> tuple[Tensor, Tensor]:
    columns = (levels.resolution, levels.rows, levels.hashed, levels.offset)
    rows = [[int(value) for value in row] for row in zip(*columns, strict=True)]
    return torch.tensor(levels.scale, device=device), torch.tensor(rows, device=device)


@cache
def _kernels() -> dict[str, Any]:
    """Compiled on first use: importing this module never imports Triton."""
    from potstill.nerf.backends import tritonkernels

    return {
        "forward": tritonkernels.forward,
        "backward_table": tritonkernels.backward_table,
        "backward_input": tritonkernels.backward_input,
    }
