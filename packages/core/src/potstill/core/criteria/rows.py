"""Row-wise criteria: one way to evaluate all of them, whole or in blocks that stay in the cache.

A criterion is row-wise when each row of logits gives one number: KD, DKD, divergences, rankings.
Such a criterion is written once, as a ``RowForm``: ``value(z_s, z_t, *context) -> [n]`` in plain
torch operations, the reference. ``evaluate`` gives it everything else the core promises: leading
axes and ``dim``, masks and weights, reductions, float32 inside for half precision, checks.

With ``blocked=True`` the rows are visited a few at a time. Value and gradient of a block are
computed in one visit, while its logits are in the cache, and the gradient goes straight into the
one buffer that backward hands out: extra memory is that buffer plus a few blocks, instead of a
handful of tensors of the size of the logits. A form may also bring its gradient in closed form;
blocks where that is not finite (a class at -inf, say) are redone by the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from potstill.core.criteria.blocks import Gradient, blocks, compute_dtype, together
from potstill.core.errors import ConfigError, ShapeError
from potstill.core.vocabulary.mean import Mean, labels_key

__all__ = [
    "Reduction",
    "RowForm",
    "RowOptions",
    "evaluate",
    "flatten",
    "positive",
    "squared",
    "temperature",
    "valid_rows",
]

Reduction = Literal["mean", "sum", "none"]


class RowOptions(TypedDict, total=False):
    """Keywords that every row-wise criterion takes.

    Attributes:
        weight: Weights of the rows, shaped like the logits without their class axis, at least 0; a
            row of weight 0 does not count, whatever it holds. May be learned.
        ignore_index: Rows whose label in ``target`` equals this do not count (default -100).
        reduction: ``"mean"`` (default): sum over classes, weighted mean over the rows that count,
            the divisor being at least 1, so that no row at all gives 0, as a
            `potstill.core.Mean` where rows are masked or weighted; ``"sum"``; ``"none"``:
            one value a row, shape [rows], rows that do not count give 0.
        dim: The class axis, by default the last. Logits of more than three axes must name it:
            segmentation [N C H W] passes 1.
        teacher_grad: Let gradient flow into the teacher's logits (online schemes); default False.
        blocked: Evaluate in blocks, with the gradient computed in the forward pass (default).
            False gives plain torch operations: needed for double backward and ``torch.func``.
            Under ``torch.compile`` and ``torch.export`` the plain form is taken by itself.
    """

    weight: Tensor | None
    ignore_index: int
    reduction: Reduction
    dim: int
    teacher_grad: bool
    blocked: bool


@dataclass(frozen=True)
class RowForm:
    """One row-wise criterion.

    Attributes:
        value: ``(z_s [n C], z_t [n C], *context) -> [n]``, differentiable: the reference.
        closed: The same arguments -> ``(values [n], gradient with respect to z_s [n C])``, both
            new tensors. Anything that is not finite sends the block to ``value``.
        labelled: The first piece of context is the label of each row.
        cost: Memory that a row takes, relative to `kd`: blocks are smaller by it.
    """

    value: Callable[..., Tensor]
    closed: Callable[..., tuple[Tensor, Tensor]] | None = None
    labelled: bool = False
    cost: float = 1


def positive(name: str, argument: str, value: int | float) -> int | float:
    """Check that a scalar option is a finite positive number.

    Raises:
        ConfigError: It is not.
    """
    if not (0 < value < math.inf):
        raise ConfigError(f"{name}: {argument} must be a finite number > 0, got {value}")
    return value


def temperature(name: str, T: float | Tensor) -> float | Tensor:
    """Check a temperature: a number, or a tensor with one for each row, returned as [N 1].

    Raises:
        ConfigError: A temperature is not positive.
    """
    if not isinstance(T, Tensor):
        return positive(name, "T", float(T))
    if T.device.type != "cpu":  # to ask a GPU is to wait for it: it refuses by itself
        torch._assert_async((T > 0).all(), f"{name}: T must be > 0 in every row")
    elif not torch.compiler.is_compiling() and not bool((T > 0).all()):
        raise ConfigError(f"{name}: T must be > 0 in every row, got a minimum of {T.min():.6g}")
    return T.reshape(-1, 1)


def squared(T: float | Tensor, t_squared: bool) -> float | Tensor:
    """``T ** 2`` as a factor of the rows, or 1."""
    if not t_squared:
        return 1.0
    return T.squeeze(1) ** 2 if isinstance(T, Tensor) else T**2


def evaluate(
    name: str,
    form: RowForm,
    z_s: Tensor,
    z_t: Tensor,
    *context: Any,
    target: Tensor | None = None,
    factor: float | Tensor = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    dim: int | None = None,
    teacher_grad: bool = False,
    blocked: bool = True,
) -> Tensor:
    """Evaluate a row-wise criterion.

    Args:
        name: Name of the criterion, for messages.
        form: Form of the result.
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        *context: Further arguments of the form; a tensor has one entry for each row.
        target: Labels [...] int64: context of a labelled form, and the mask through
            ``ignore_index``. A float distribution is accepted and masks nothing.
        factor: Multiplies the rows (``T ** 2``).
        weight: See `RowOptions`, like the rest.
        ignore_index: The label of rows that do not count.
        reduction: Over rows.
        dim: The class axis.
        teacher_grad: Let gradients flow into ``z_t``.
        blocked: Evaluate in blocks.

    Raises:
        ShapeError: Shapes that differ, no rows or classes, a label out of range.
        ConfigError: An unknown reduction; a labelled form without labels.
    """
    z_s, z_t, shape = flatten(name, z_s, z_t, dim)
    if not teacher_grad:
        z_t = z_t.detach()
    valid = None
    if form.labelled:
        labels, valid = _labels(name, target, ignore_index, z_s, shape)
        context = (labels, *context)
    elif target is not None and not target.is_floating_point():
        _, valid = valid_rows(name, target, ignore_index, shape)
    for piece in context:
        if isinstance(piece, Tensor) and piece.ndim and len(piece) != len(z_s):
            raise ShapeError(f"{name}: {len(z_s)} rows need {len(z_s)} entries, got {len(piece)}")
    scale, count = _scale(name, reduction, factor, weight, valid, z_s, shape)

    differentiable = [piece for piece in (*context, scale) if isinstance(piece, Tensor)]
    plain = (
        not blocked
        or torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and any(piece.requires_grad for piece in differentiable))
    )
    if plain:
        values = _whole(form, z_s, z_t, context, scale)
        value = values if reduction == "none" else values.sum()
    else:
        value = together(partial(_sweep, form, context, scale, reduction != "none"), z_s, z_t)
    if reduction != "mean" or count is None or torch.compiler.is_exporting():
        return value
    key = labels_key(target, ignore_index) if weight is None and target is not None else None
    return Mean.known(value, count, key)


def flatten(
    name: str, z_s: Tensor, z_t: Tensor, dim: int | None
) -> tuple[Tensor, Tensor, torch.Size]:
    """Check the logits and flatten them to [N C]; also the shape of the rows.

    Raises:
        ShapeError: Shapes that differ, no row or class, or dense logits without their class axis.
    """
    if z_s.shape != z_t.shape or z_s.ndim < 1:
        raise ShapeError(
            f"{name}: z_t must be {list(z_s.shape)} like z_s, got {list(z_t.shape)}; "
            "do both models see the same batch and the same classes?"
        )
    if not (z_s.is_floating_point() and z_t.is_floating_point()):
        raise ShapeError(f"{name}: logits must be floating point, got {z_s.dtype}, {z_t.dtype}")
    if z_s.numel() == 0:
        raise ShapeError(f"{name}: at least one row is needed, got {list(z_s.shape)}")
    if dim is None and z_s.ndim > 3:
        raise ShapeError(
            f"{name}: dim must name the class axis of logits {list(z_s.shape)}, got None; pass "
            "dim=1 for dense predictions [N C H W], or dim=-1 where classes come last"
        )
    if dim not in (None, -1, z_s.ndim - 1):
        z_s, z_t = z_s.movedim(dim, -1), z_t.movedim(dim, -1)
    shape = z_s.shape[:-1]
    return z_s.reshape(-1, z_s.shape[-1]), z_t.reshape(-1, z_t.shape[-1]), shape


def valid_rows(
    name: str, target: Tensor, ignore_index: int, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """The labels [N], 0 where ignored, and which rows count [N].

    Raises:
        ShapeError: There is not one label for each row.
    """
    if target.shape != shape:
        raise ShapeError(
            f"{name}: target must be {list(shape)} like the rows of z_s, got {list(target.shape)}"
        )
    valid = target.reshape(-1) != ignore_index
    return target.reshape(-1).where(valid, 0).long(), valid


def _labels(
    name: str, target: Tensor | None, ignore_index: int, z_s: Tensor, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Labels that a labelled form can use, and which rows count.

    Raises:
        ConfigError: There are none.
        ShapeError: They do not fit, or are out of range (not checked on a GPU: torch does).
    """
    if target is None or target.is_floating_point():
        got = "None" if target is None else str(target.dtype)
        raise ConfigError(f"{name}: target must be integer labels, got {got}")
    labels, valid = valid_rows(name, target, ignore_index, shape)
    if z_s.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = labels.aminmax()
        if low < 0 or high >= z_s.shape[1]:
            raise ShapeError(
                f"{name}: target must be in [0, {z_s.shape[1]}) or {ignore_index} (ignored), "
                f"got labels from {int(low)} to {int(high)}"
            )
    return labels, valid


def _scale(
    name: str,
    reduction: str,
    factor: float | Tensor,
    weight: Tensor | None,
    valid: Tensor | None,
    z_s: Tensor,
    shape: torch.Size,
) -> tuple[float | Tensor, Tensor | None]:
    """What rows are multiplied by, a number where all are alike, and the count if not all count."""
    if reduction not in ("mean", "sum", "none"):
        raise ConfigError(f"{name}: reduction must be mean, sum or none, got {reduction!r}")
    if weight is not None and weight.shape != shape:
        raise ShapeError(
            f"{name}: weight must be {list(shape)} like the rows of z_s, got {list(weight.shape)}"
        )
    if weight is None and valid is None:
        return factor / len(z_s) if reduction == "mean" else factor, None
    kind = compute_dtype(z_s.dtype)
    rows = z_s.new_ones(len(z_s), dtype=kind) if weight is None else weight.reshape(-1).to(kind)
    if valid is not None:
        rows = rows * valid
    count = rows.sum()
    looked_at = weight is None and z_s.device.type == "cpu" and not torch.compiler.is_compiling()
    if looked_at and bool(count == len(z_s)):  # no mask, no cost
        return factor / len(z_s) if reduction == "mean" else factor, count
    if reduction == "mean":
        rows = rows / count.clamp_min(1)
    return rows * factor, count.detach()


def _whole(
    form: RowForm, z_s: Tensor, z_t: Tensor, context: tuple[Any, ...], scale: float | Tensor
) -> Tensor:
    """The scaled rows by plain torch operations."""
    kind = compute_dtype(z_s.dtype)
    z_s, z_t = z_s.to(kind), z_t.to(kind)
    if isinstance(scale, Tensor):
        # Rows that do not count may hold anything, also NaN, which 0 * NaN would spread.
        dead = (scale == 0).unsqueeze(1)
        z_s, z_t = z_s.masked_fill(dead, 0), z_t.masked_fill(dead, 0)
    return form.value(z_s, z_t, *context) * scale


def _sweep(
    form: RowForm,
    context: tuple[Any, ...],
    scale: float | Tensor,
    reduce: bool,
    z_s: Tensor,
    z_t: Tensor,
    *,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, list[Gradient | None]]:
    """Values [N] or their sum and, where wanted, the gradients with respect to both logits.

    The closed form comes first, and the reference where a value of that is not finite: asked once
    after all blocks, since a GPU has to be waited for.
    """
    arguments = (form, context, scale, z_s, z_t, wanted)
    closed = form.closed is not None and wanted == (True, False)
    values, gradients = _visit(*arguments, closed)
    if closed and not bool(values.isfinite().all()):
        values, gradients = _visit(*arguments, closed=False)
    return values.sum() if reduce else values, gradients


def _visit(
    form: RowForm,
    context: tuple[Any, ...],
    scale: float | Tensor,
    z_s: Tensor,
    z_t: Tensor,
    wanted: tuple[bool, bool],
    closed: bool,
) -> tuple[Tensor, list[Gradient | None]]:
    """Values [N] and gradients, block by block."""
    kind = compute_dtype(z_s.dtype)
    values = torch.empty(len(z_s), dtype=kind, device=z_s.device)
    gradients = [Gradient(z) if want else None for z, want in zip((z_s, z_t), wanted, strict=True)]
    for block in blocks(z_s, math.ceil(form.cost * z_s.shape[1])):
        s, t = z_s[block].to(kind), z_t[block].to(kind)
        pieces = [p[block] if isinstance(p, Tensor) and p.ndim else p for p in context]
        by = scale[block] if isinstance(scale, Tensor) else scale
        if isinstance(by, Tensor):
            dead = (by == 0).unsqueeze(1)
            s, t = s.masked_fill(dead, 0), t.masked_fill(dead, 0)
        found = _block(form, s, t, pieces, wanted, closed)
        torch.mul(found[0], by, out=values[block])
        column = by.unsqueeze(1) if isinstance(by, Tensor) else by
        for gradient, part in zip(gradients, found[1:], strict=True):
            if gradient is not None and part is not None:
                gradient.write(block, part, column)
    return values, gradients


def _block(
    form: RowForm, s: Tensor, t: Tensor, context: list[Any], wanted: tuple[bool, bool], closed: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Values of one block and their gradients, by the closed form or the reference."""
    if closed and form.closed is not None:
        return *form.closed(s, t, *context), None
    inputs = [z.detach().requires_grad_(want) for z, want in zip((s, t), wanted, strict=True)]
    with torch.set_grad_enabled(any(wanted)):
        values = form.value(*inputs, *context)
    leaves = [z for z in inputs if z.requires_grad]
    found = iter(torch.autograd.grad(values, leaves, torch.ones_like(values)) if leaves else ())
    grad_s, grad_t = (next(found) if want else None for want in wanted)
    return values.detach(), grad_s, grad_t
