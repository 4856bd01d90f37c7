"""Triton kernels over tokens sorted by choice: tokens are read and written where they lie.

A program handles a block of sorted tokens and stops at the last hidden unit that any of them
wants; at most one block a choice is partly wasted. ``fused`` keeps the hidden units on the chip,
which pays where few output tiles are needed, as each tile computes them anew; ``split`` writes
them once and reads them back. Which is faster, and with which tiles, is measured for each shape.

Without a GPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), for tests.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import triton as tr
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import PTXASError

from potstill.acm.backends.autotune import Autotuner
from potstill.acm.backends.dense_masked import dense_masked
from potstill.acm.backends.learners import Learners, on_device, split_widths
from potstill.core import ConfigError

__all__ = ["NARROW", "WIDE", "Tiles", "launches", "tilings", "triton", "tuner"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CODES = {"identity": 0, "gelu": 1, "gelu_tanh": 2, "quick_gelu": 3, "relu": 4, "silu": 5}


class Tiles(NamedTuple):
    """Sizes of the tiles of a launch.

    Attributes:
        fused: One kernel for both products, else two.
        tokens: Sorted tokens a program.
        hidden: Hidden units a step.
        inner: Input or output columns a step.
        warps: Warps a program.
    """

    fused: bool
    tokens: int
    hidden: int
    inner: int
    warps: int


WIDE = (
    Tiles(False, 128, 128, 128, 8),
    Tiles(False, 128, 128, 64, 8),
    Tiles(False, 64, 128, 128, 4),
    Tiles(True, 64, 64, 256, 8),
    Tiles(True, 128, 64, 64, 8),
)
"""For half precision on tensor cores."""

NARROW = (
    Tiles(False, 64, 64, 32, 8),
    Tiles(False, 32, 64, 32, 4),
    Tiles(False, 32, 32, 32, 4),
    Tiles(True, 64, 32, 32, 8),
    Tiles(True, 32, 32, 32, 4),
)
"""For float32, and for widths that cannot be read as vectors: both need many registers."""

tuner = Autotuner(skip=(tr.OutOfResources, PTXASError))
"""What was found fastest, for each shape."""


@tr.jit
def _activate(z, CODE: tl.constexpr):
    if CODE == 1:
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif CODE == 2:  # tanh(a) = 2 sigmoid(2a) - 1
        z = z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    elif CODE == 3:
        z = z * tl.sigmoid(1.702 * z)
    elif CODE == 4:
        z = tl.maximum(z, 0.0)
    elif CODE == 5:
        z = z * tl.sigmoid(z)
    return z


@tr.jit
def _at(start, row, columns):
    """Where rows of a matrix begin, which may have more than 2^31 elements."""
    return start + row.to(tl.int64) * columns


@tr.jit
def _hidden_tile(
    x, up, bias, rows, live, unit, limit, wanted, columns,
    CODE: tl.constexpr, TOKENS: tl.constexpr, HIDDEN: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Hidden units from ``unit`` on, [TOKENS HIDDEN]; zero where a token does not want them."""
    h = unit + tl.arange(0, HIDDEN)
    z = tl.zeros((TOKENS, HIDDEN), tl.float32)
    for d0 in range(0, columns, INNER):
        d = d0 + tl.arange(0, INNER)
        a = tl.load(
            _at(x, rows[:, None], columns) + d[None, :],
            mask=live[:, None] & (d < columns)[None, :], other=0.0,
        )  # fmt: skip
        w = tl.load(
            _at(up, h[None, :], columns) + d[:, None],
            mask=(h < limit)[None, :] & (d < columns)[:, None], other=0.0,
        )  # fmt: skip
        z = tl.dot(a, w, z, input_precision="ieee")
    z += tl.load(bias + h, mask=h < limit, other=0.0).to(tl.float32)[None, :]
    return tl.where(h[None, :] < wanted[:, None], _activate(z, CODE), 0.0)


@tr.jit
def _block(order, choices, ends, tokens, TOKENS: tl.constexpr):
    """The sorted tokens of this program, which of them exist, and how many units each wants."""
    position = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    live = position < tokens
    rows = tl.load(order + position, mask=live, other=0).to(tl.int64)
    choice = tl.load(choices + rows, mask=live, other=0)
    wanted = tl.load(ends + choice, mask=live, other=0)
    return position, live, rows, wanted


@tr.jit
def _fused_kernel(
    x, up, bias, down, shift, order, choices, ends, y, tokens, columns, outputs,
    CODE: tl.constexpr, TOKENS: tl.constexpr, HIDDEN: tl.constexpr, INNER: tl.constexpr,
    OUT: tl.constexpr,
):  # fmt: skip
    _position, live, rows, wanted = _block(order, choices, ends, tokens, TOKENS)
    limit = tl.max(wanted, axis=0)
    o = tl.program_id(1).to(tl.int64) * OUT + tl.arange(0, OUT)
    total = tl.zeros((TOKENS, OUT), tl.float32)
    for unit in range(0, limit, HIDDEN):
        z = _hidden_tile(
            x, up, bias, rows, live, unit, limit, wanted, columns, CODE, TOKENS, HIDDEN, INNER
        )
        h = unit + tl.arange(0, HIDDEN)
        w = tl.load(
            _at(down, h[:, None], outputs) + o[None, :],
            mask=(h < limit)[:, None] & (o < outputs)[None, :], other=0.0,
        )  # fmt: skip
        total = tl.dot(z.to(w.dtype), w, total, input_precision="ieee")
    first = tl.load(shift + o, mask=o < outputs, other=0.0).to(tl.float32)
    total += tl.where((wanted > 0)[:, None], first[None, :], 0.0)
    where = _at(y, rows[:, None], outputs) + o[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=live[:, None] & (o < outputs)[None, :])


@tr.jit
def _up_kernel(
    x, up, bias, order, choices, ends, buffer, tokens, columns, units,
    CODE: tl.constexpr, TOKENS: tl.constexpr, HIDDEN: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    position, live, rows, wanted = _block(order, choices, ends, tokens, TOKENS)
    limit = tl.max(wanted, axis=0)
    unit = tl.program_id(1).to(tl.int64) * HIDDEN
    if unit < limit:
        z = _hidden_tile(
            x, up, bias, rows, live, unit, limit, wanted, columns, CODE, TOKENS, HIDDEN, INNER
        )
        h = unit + tl.arange(0, HIDDEN)
        where = _at(buffer, position[:, None], units) + h[None, :]
        z = z.to(buffer.dtype.element_ty)
        tl.store(where, z, mask=live[:, None] & (h < units)[None, :])


@tr.jit
def _down_kernel(
    buffer, down, shift, order, choices, ends, y, tokens, units, outputs,
    TOKENS: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    position, live, rows, wanted = _block(order, choices, ends, tokens, TOKENS)
    limit = tl.max(wanted, axis=0)
    o = tl.program_id(1).to(tl.int64) * OUT + tl.arange(0, OUT)
    total = tl.zeros((TOKENS, OUT), tl.float32)
    for unit in range(0, limit, HIDDEN):
        h = unit + tl.arange(0, HIDDEN)
        z = tl.load(
            _at(buffer, position[:, None], units) + h[None, :],
            mask=live[:, None] & (h < limit)[None, :], other=0.0,
        )  # fmt: skip
        w = tl.load(
            _at(down, h[:, None], outputs) + o[None, :],
            mask=(h < limit)[:, None] & (o < outputs)[None, :], other=0.0,
        )  # fmt: skip
        total = tl.dot(z, w, total, input_precision="ieee")
    first = tl.load(shift + o, mask=o < outputs, other=0.0).to(tl.float32)
    total += tl.where((wanted > 0)[:, None], first[None, :], 0.0)
    where = _at(y, rows[:, None], outputs) + o[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=live[:, None] & (o < outputs)[None, :])


def _launch(x: Tensor, choices: Tensor, learners: Learners, tiles: Tiles) -> Tensor:
    """Sort, and run the kernels with ``tiles``; the host waits for nothing."""
    x = x.contiguous()
    up, bias, down, shift = (t.contiguous() for t in learners[:4])
    (tokens, columns), (units, outputs) = x.shape, down.shape
    order = torch.argsort(choices, descending=True)
    ends = on_device(learners.bounds, x.device, torch.long)
    y = x.new_empty(tokens, outputs)
    blocks = tr.cdiv(tokens, tiles.tokens)
    sizes: dict[str, Any] = {"TOKENS": tiles.tokens, "HIDDEN": tiles.hidden}
    sizes["num_warps"] = tiles.warps
    code = _CODES[learners.activation]
    with torch.cuda.device_of(x):
        if tiles.fused:
            _fused_kernel[(blocks, tr.cdiv(outputs, tiles.inner))](
                x, up, bias, down, shift, order, choices, ends, y, tokens, columns, outputs,
                CODE=code, INNER=min(tiles.inner, 64), OUT=tiles.inner, **sizes,
            )  # fmt: skip
            return y
        buffer = x.new_empty(tokens, units)
        _up_kernel[(blocks, tr.cdiv(units, tiles.hidden))](
            x, up, bias, order, choices, ends, buffer, tokens, columns, units,
            CODE=code, INNER=min(tiles.inner, 64), **sizes,
        )  # fmt: skip
        _down_kernel[(blocks, tr.cdiv(outputs, tiles.inner))](
            buffer, down, shift, order, choices, ends, y, tokens, units, outputs,
            OUT=tiles.inner, **sizes,
        )  # fmt: skip
    return y


def launches() -> Iterator[Callable[[], object]]:
    """Calls that launch each kernel in each of its forms; `tools/compile_kernels.py` makes them."""
    for dtype, activation, width in product(_DTYPES, _CODES, (24, 64)):
        up, down = torch.zeros(2, 64, width, dtype=dtype)
        learners = Learners(up, up[:, 0], down, down[0], split_widths(64, 4), activation)
        for tiles in tilings(up, learners):
            yield partial(_launch, up, torch.ones(64, dtype=torch.long), learners, tiles)


class _Triton(torch.autograd.Function):
    """The kernels forward; backward through the reference, recomputed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, choices: Tensor, learners: Learners, *weights: Tensor) -> Any:
        ctx.save_for_backward(x, choices, *weights)
        ctx.learners = learners
        return _tuned(x, choices, learners)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, choices, *weights = ctx.saved_tensors
        inputs = [t.detach().requires_grad_() for t in (x, *weights)]
        with torch.enable_grad():
            up, bias, down, shift = inputs[1:]
            learners = ctx.learners._replace(up=up, bias=bias, down=down, shift=shift)
            y = dense_masked(inputs[0], choices, learners)
        found = torch.autograd.grad(y, inputs, grads[0])
        return found[0], None, None, *found[1:]


def _tuned(x: Tensor, choices: Tensor, learners: Learners) -> Tensor:
    key = (len(x).bit_length(), *learners.down.shape, x.shape[1], x.dtype, x.device)
    ways = {t: partial(_launch, x, choices, learners, t) for t in tilings(x, learners)}
    tiles = next(iter(ways)) if x.device.type == "cpu" else tuner.choose(key, ways, x.device)
    return _launch(x, choices, learners, tiles)


def tilings(x: Tensor, learners: Learners) -> tuple[Tiles, ...]:
    """What to choose from; all of it fits 99 KiB of shared memory and spills no registers."""
    vectors = not any(width % 16 for width in (*learners.up.shape, *learners.down.shape))
    return WIDE if vectors and x.dtype != torch.float32 else NARROW


def triton(x: Tensor, choices: Tensor, learners: Learners, tiles: Tiles | None = None) -> Tensor:
    """Run the first ``choices[t]`` learners on each token with Triton kernels.

    Same signature and result as `dense_masked`; differentiable (the backward recomputes densely:
    sparse execution is for inference). There is no host synchronisation once the tiles are known.

    Args:
        x: Tokens, [tokens in], on a CUDA device (or the CPU in Triton's interpreter).
        choices: Learners of each token, [tokens] int64.
        learners: The learners.
        tiles: Sizes of the tiles; by default the fastest of `tilings`, measured on the first call.

    Raises:
        ConfigError: The activation or the dtype has no kernel, or the networks are gated.
    """
    if learners.lift is not None:
        raise ConfigError(
            "triton: learners must be plain networks, got gated ones (SwiGLU); use the backend "
            "sorted_prefix"
        )
    if x.dtype not in _DTYPES:
        raise ConfigError(
            f"triton: x must be float32, float16 or bfloat16, got {x.dtype}; use the backend "
            "sorted_prefix"
        )
    if learners.activation not in _CODES:
        raise ConfigError(
            f"triton: activation must be one of {', '.join(_CODES)}, got "
            f"{learners.activation!r}; use the backend sorted_prefix"
        )
    if tiles is not None:
        return _launch(x, choices, learners, tiles)
    if not torch.is_grad_enabled():
        return _tuned(x, choices, learners)
    return _Triton.apply(x, choices, learners, *learners[:4])
