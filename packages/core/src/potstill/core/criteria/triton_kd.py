"""KD on a GPU in one kernel: value and gradient in two reads of the logits and one write.

A program owns a row. It walks the classes twice: first both log-sum-exps (online, so that one read
suffices) together with the divergence, then the gradient ``(q - p) / T``. The torch form is the
reference (`potstill.core.criteria.logit`); rows that are not finite are redone by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["kd_rows", "launches"]

_TILE = 4096


@triton.jit
def _kd_kernel(  # type: ignore[no-untyped-def]
    z_s, z_t, inverse_t, value, gradient, classes, tile: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(inverse_t + row)
    start = row * classes
    columns = tl.arange(0, tile)

    # Running maximum m, sum of exp(x - m), and the teacher's mean of x_t - x_s.
    top_s, top_t = -float("inf"), -float("inf")
    sum_s, sum_t, gap = 0.0, 0.0, 0.0
    for first in range(0, classes, tile):
        inside = first + columns < classes
        at = start + first + columns
        x_s = tl.load(z_s + at, mask=inside, other=-float("inf")).to(tl.float32) * scale
        x_t = tl.load(z_t + at, mask=inside, other=-float("inf")).to(tl.float32) * scale
        next_s = tl.maximum(top_s, tl.max(x_s, 0))
        next_t = tl.maximum(top_t, tl.max(x_t, 0))
        sum_s = sum_s * tl.exp(top_s - next_s) + tl.sum(tl.exp(x_s - next_s), 0)
        weight = tl.exp(x_t - next_t)
        shrink = tl.exp(top_t - next_t)
        sum_t = sum_t * shrink + tl.sum(weight, 0)
        gap = gap * shrink + tl.sum(tl.where(inside, weight * (x_t - x_s), 0.0), 0)
        top_s, top_t = next_s, next_t
    log_s, log_t = top_s + tl.log(sum_s), top_t + tl.log(sum_t)
    tl.store(value + row, gap / sum_t - (log_t - log_s))

    for first in range(0, classes, tile):
        inside = first + columns < classes
        at = start + first + columns
        x_s = tl.load(z_s + at, mask=inside, other=-float("inf")).to(tl.float32) * scale
        x_t = tl.load(z_t + at, mask=inside, other=-float("inf")).to(tl.float32) * scale
        slope = (tl.exp(x_s - log_s) - tl.exp(x_t - log_t)) * scale
        tl.store(gradient + at, slope.to(gradient.dtype.element_ty), mask=inside)


def kd_rows(z_s: Tensor, z_t: Tensor, T: float | Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) of each row without ``T ** 2``, and its gradient with respect to ``z_s``.

    Args:
        z_s: Logits of the student, [N C], contiguous; float32, float16 or bfloat16.
        z_t: Logits of the teacher, same shape.
        T: Temperature, a number or [N 1].

    Returns:
        Values [N] float32 and the gradient [N C] in the dtype of ``z_s``. A row with a class at
        -inf may hold NaN.
    """
    rows, classes = z_s.shape
    inverse = torch.as_tensor(1 / T, dtype=torch.float32, device=z_s.device)
    inverse = inverse.reshape(-1).expand(rows).contiguous()
    value = torch.empty(rows, dtype=torch.float32, device=z_s.device)
    gradient = torch.empty_like(z_s)
    tile = min(_TILE, triton.next_power_of_2(classes))
    with torch.cuda.device_of(z_s):
        _kd_kernel[(rows,)](z_s, z_t, inverse, value, gradient, classes, tile=tile)
    return value, gradient


def launches() -> Iterator[Callable[[], object]]:
    """Calls that launch the kernel in each of its forms; `tools/compile_kernels.py` makes them."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for classes in (1, 2, 10, 16, 37, 100, 128, 200, 512, 1000, 1024, 4096, 10_007, 32_000):
            z = torch.zeros(2, classes, dtype=dtype)
            yield partial(kd_rows, z, z, 4.0)
