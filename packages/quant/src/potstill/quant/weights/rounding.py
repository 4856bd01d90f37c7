"""Roundings of weights, differentiable where training needs it. Pure functions of tensors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from potstill.core import ConfigError

__all__ = ["dual_binarize", "learned_step", "quantize_to_levels", "uniform_quantize"]


def buckets(w: Tensor, bucket_size: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Values in rows of ``bucket_size``, the last padded with its last value; least and width.

    Widths of 0 (a constant bucket) are 1, so that the bucket quantizes to itself.
    """
    flat = w.reshape(-1)
    size = len(flat) if bucket_size is None else bucket_size
    if size < 1:
        raise ConfigError(f"quantize: bucket_size must be at least 1, got {bucket_size}")
    padding = -len(flat) % size
    rows = torch.cat([flat, flat[-1:].expand(padding)]).reshape(-1, size)
    least = rows.amin(1, keepdim=True)
    width = rows.amax(1, keepdim=True) - least
    return rows, least, width.where(width > 0, 1.0)


def uniform_quantize(
    w: Float[Tensor, "*shape"], levels: int, *, bucket_size: int | None = 256
) -> Float[Tensor, "*shape"]:
    """Round weights to equally spaced levels between the extremes of their bucket.

    Source: Polino, Pascanu and Alistarh, Model Compression via Distillation and Quantization, ICLR
    2018, section 2: ``(w - min) / (max - min)`` to the nearest of ``levels`` points (halves to
    even) and back. The gradient passes straight through: their quantized distillation, forward
    with quantized weights, updates of the full-precision ones.

    Args:
        w: Weights, any shape.
        levels: Number of levels, at least 2 (``2 ** bits``).
        bucket_size: Weights scaled together, in order; None takes all as one bucket.

    Raises:
        ConfigError: Fewer than 2 levels, or a bucket size below 1.

    Example:
        >>> uniform_quantize(torch.tensor([0.0, 0.4, 1.0]), 3)
        tensor([0.0000, 0.5000, 1.0000])
    """
    if levels < 2:
        raise ConfigError(f"uniform_quantize: levels must be at least 2, got {levels}")
    with torch.no_grad():
        rows, least, width = buckets(w, bucket_size)
        steps = ((rows - least) / width * (levels - 1)).round()
        rounded = (steps / (levels - 1) * width + least).reshape(-1)[: w.numel()].reshape(w.shape)
    return rounded + (w - w.detach()) if w.requires_grad else rounded  # exactly rounded


def quantize_to_levels(
    w: Float[Tensor, "*shape"],
    levels: Float[Tensor, levels],
    *,
    bucket_size: int | None = None,
) -> tuple[Float[Tensor, "*shape"], Int[Tensor, "*shape"]]:
    """Round weights to learned levels: differentiable quantization.

    Source: Polino, Pascanu and Alistarh, ICLR 2018, section 3. Levels lie in [0, 1] of the bucket's
    range; each weight takes the nearest. With alpha the range, ``dL/dp_k = sum alpha dL/dQ_i`` over
    the weights at level k, which is autograd's gradient of the lookup.

    Args:
        w: Weights, any shape; treated as constants.
        levels: Sorted, in [0, 1]; the parameters. `LearnedLevels` keeps them so while they train.
        bucket_size: As in `uniform_quantize`, here by default one bucket.

    Returns:
        Quantized weights, and the level of each.

    Raises:
        ConfigError: Levels that are not sorted within [0, 1].
    """
    flat = levels.detach()
    if flat.ndim != 1 or len(flat) < 2 or flat[0] < 0 or flat[-1] > 1 or (flat.diff() < 0).any():
        raise ConfigError(f"quantize_to_levels: levels must be sorted in [0, 1], got {flat}")
    rows, least, width = buckets(w.detach(), bucket_size)
    index = torch.bucketize((rows - least) / width, (flat[1:] + flat[:-1]) / 2)
    quantized = levels[index] * width + least
    quantized, index = (x.reshape(-1)[: w.numel()].reshape(w.shape) for x in (quantized, index))
    return quantized, index


def dual_binarize(
    w: Float[Tensor, "*shape"],
    first: Float[Tensor, "*#shape"] | float,
    second: Float[Tensor, "*#shape"] | float,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Weights as a sum of two scaled binary masks: ``a1 b1 + a2 b2``.

    Source: Chen et al., DB-LLM, 2024, flexible dual binarization: ``b1 = H(w - (a1 + a2) / 2)``,
    ``b2 = H(-(w - a1 b1 - a2 / 2))``, H the unit step. In the cone ``a1 > -a2 > 0`` each weight
    takes the nearest of {a2, 0, a1 + a2, a1}; outside of it the masks would not be the nearest
    ones. Differentiable in a1 and a2; straight through in w.

    Args:
        w: Weights.
        first: a1, the larger scale: one, or one for each row.
        second: a2, of the other sign.

    Returns:
        The weights, and both masks.

    Raises:
        ConfigError: Scales outside of the cone and of its mirror image, ``a1 < -a2 < 0``.
            `DualBinary` stays inside while it trains.
    """
    with torch.no_grad():
        a_1, a_2 = (torch.as_tensor(a, dtype=w.dtype, device=w.device) for a in (first, second))
        sign = a_1.sign()
        if not ((a_2 * sign < 0) & (a_1.abs() > a_2.abs())).all():
            raise ConfigError(
                "dual_binarize: scales must have first > -second > 0, or both signs turned, got "
                f"{a_1.flatten()[:4].tolist()} and {a_2.flatten()[:4].tolist()}; DualBinary keeps "
                "learned scales so"
            )
        b_1 = (sign * (w - (a_1 + a_2) / 2) > 0).to(w.dtype)
        b_2 = (-sign * (w - a_1 * b_1 - a_2 / 2) > 0).to(w.dtype)
    through = w - w.detach() if w.requires_grad else 0.0
    return first * b_1 + second * b_2 + through, b_1, b_2


class _LearnedStep(torch.autograd.Function):
    """Forward and gradients of `learned_step`."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, s: Tensor, low: int, high: int, offset: float) -> Tensor:
        x = w / s
        level = (x - offset).round().clamp(low, high) + offset
        ctx.save_for_backward(x, level)
        ctx.bounds = (low, high) if offset == 0 else (low, high + 1)  # of the whole cells
        return s * level

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (gradient,) = gradients
        x, level = ctx.saved_tensors
        inside = (x >= ctx.bounds[0]) & (x <= ctx.bounds[1])
        to_scale = gradient * torch.where(inside, level - x, level)
        return gradient * inside, to_scale.sum(1, keepdim=True), None, None, None


def learned_step(
    w: Float[Tensor, "rows inputs"],
    scale: Float[Tensor, "rows 1"],
    low: int,
    high: int,
    offset: float = 0.0,
) -> Float[Tensor, "rows inputs"]:
    """Round to ``scale * (q + offset)``, with gradients for weights and scales.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020, Eqs. (1) to (3) and (5): with
    ``x = w / s``, the gradient to w is 1 inside of the range and 0 outside; that to s is
    ``round(x) - x`` inside, and the end of the range outside. Both together give
    ``w dŵ/dw + s dŵ/ds = ŵ``, since ŵ is homogeneous in (w, s).

    Args:
        w: Weights; a row has one scale.
        scale: Steps, not 0; a negative one mirrors the range.
        low: Smallest integer.
        high: Largest integer.
        offset: One half on a mid-rise grid.

    Example:
        >>> w, s = torch.tensor([[0.35, -0.8, 1.9]]), torch.tensor([[0.5]], requires_grad=True)
        >>> learned_step(w, s, -2, 1).sum().backward()
        >>> s.grad
        tensor([[0.9000]])
    """
    rounded: Tensor = _LearnedStep.apply(w, scale, low, high, offset)
    return rounded
