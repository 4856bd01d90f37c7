"""What criteria on features share: pairs of tensors checked, detached and widened; masked means."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.core.errors import ShapeError
from potstill.core.vocabulary.mean import Mean, labels_key

__all__ = ["masked_mean", "pair", "wide"]


def wide(x: Tensor) -> Tensor:
    """Half precision to float32, in which all reductions run; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def pair(
    name: str,
    f_s: Tensor,
    f_t: Tensor,
    *,
    same: slice | None = slice(None),
    ndim: int | None = None,
    rows: int = 1,
    teacher_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check a pair of features, detach the teacher's, widen both.

    Args:
        name: Name of the criterion, for messages.
        f_s: Features of the student.
        f_t: Features of the teacher.
        same: Which axes must agree; None for none.
        ndim: Number of axes of both.
        rows: The least number of rows (the first axis).
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: They do not fit together, or there are too few rows.
    """
    if same is not None and (f_s.ndim != f_t.ndim or f_s.shape[same] != f_t.shape[same]):
        raise ShapeError(
            f"{name}: f_t must agree with f_s {list(f_s.shape)} in "
            f"{'all axes' if same == slice(None) else 'the axes compared'}, got "
            f"{list(f_t.shape)}; a projector (`Projected`) maps widths and sizes"
        )
    for which, f in (("f_s", f_s), ("f_t", f_t)):
        if not f.is_floating_point():
            raise ShapeError(f"{name}: {which} must be floating point, got {f.dtype}")
        if ndim is not None and f.ndim != ndim:
            raise ShapeError(f"{name}: {which} must have {ndim} axes, got shape {list(f.shape)}")
        if f.numel() == 0 or len(f.reshape(len(f), -1) if f.ndim else f[None]) < rows:
            raise ShapeError(
                f"{name}: at least {rows} row(s) needed in {which}, got shape {list(f.shape)}"
            )
    return wide(f_s), wide(f_t if teacher_grad else f_t.detach())


def masked_mean(name: str, values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values`` where ``mask``, a prefix of their shape, is non-zero; 0 where it never is.

    A float mask weighs: ``sum w v / max(sum w, 1)``, entries of trailing axes counting alike.

    Raises:
        ShapeError: The mask's shape is not a prefix of the shape of ``values``.
    """
    if mask is None:
        return values.mean()
    if mask.shape != values.shape[: mask.ndim]:
        raise ShapeError(
            f"{name}: mask must be {list(values.shape)} or its leading axes, got {list(mask.shape)}"
        )
    weight, count = mask.to(values.dtype), mask.sum()
    key = labels_key(mask, 0)
    each = values.numel() / max(weight.numel(), 1)
    weight = weight.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    # What is masked may be NaN, and 0 * NaN is NaN.
    total = (values.masked_fill(weight == 0, 0) * weight).sum()
    value = total / (weight.sum().clamp_min(1) * each)
    return value if torch.compiler.is_exporting() else Mean.known(value, count.detach(), key)
