"""Metrics: how good a student is. Accuracy and calibration of classifiers, fidelity of images."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from potstill.core.errors import ConfigError, ShapeError

__all__ = ["accuracy", "ece", "psnr", "ssim"]

Reduction = Literal["mean", "none"]

_RADIUS, _SIGMA = 5, 1.5  # Wang et al. 2004: an 11x11 Gaussian window of 1.5 pixels


def accuracy(
    logits: Float[Tensor, "samples classes"], labels: Integer[Tensor, " samples"], k: int = 1
) -> float:
    """Share of samples whose label is among the ``k`` largest logits (top-k accuracy).

    Args:
        logits: Scores of any scale, one row a sample.
        labels: Class indices from 0.
        k: Number of guesses that count.

    Returns:
        A fraction from 0 to 1. Ties are broken as ``torch.topk`` does.

    Raises:
        ShapeError: No samples, or shapes or dtypes that do not fit.
        ConfigError: ``k`` is not from 1 to the number of classes; a label is not a class; a logit
            is NaN.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    _classified("accuracy", logits, labels)
    if not 1 <= k <= logits.shape[1]:
        raise ConfigError(
            f"accuracy: k must be from 1 to the {logits.shape[1]} classes, got {k}; choose another"
        )
    # argmax and topk break ties differently; one function keeps accuracy(k) monotone in k
    hits = logits.topk(k, dim=1).indices == labels[:, None]
    return int(hits.sum()) / len(labels)


def ece(
    logits: Float[Tensor, "samples classes"],
    labels: Integer[Tensor, " samples"],
    bins: int = 15,
) -> float:
    """Expected calibration error: mean distance between confidence and accuracy.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    Eq. 3: ``sum_b |B_b| / n * |acc(B_b) - conf(B_b)|`` over the equal bins ``(b-1, b] / bins``;
    confidence is the largest softmax probability. It depends on ``bins``: state it.

    Args:
        logits: Unnormalised scores (not probabilities).
        labels: Class indices from 0.
        bins: Number of bins.

    Returns:
        A fraction from 0 (calibrated) to 1, computed in float64.

    Raises:
        ShapeError: No samples, or shapes or dtypes that do not fit.
        ConfigError: ``bins`` < 1; a label is not a class; a logit is NaN.

    Example:
        >>> round(ece(torch.tensor([[0.0, 100.0], [0.0, 100.0]]), torch.tensor([1, 0])), 3)
        0.5
    """
    _classified("ece", logits, labels)
    if bins < 1:
        raise ConfigError(f"ece: bins must be at least 1, got {bins}; 15 is customary")
    confidence, guess = logits.double().softmax(dim=1).max(dim=1)
    gap = (guess == labels).double() - confidence
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64, device=gap.device).index_add(0, index, gap)
    return float(gaps.abs().sum()) / len(labels)


def psnr(
    x: Tensor,
    y: Tensor,
    data_range: float = 1.0,
    *,
    reduction: Reduction = "mean",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Peak signal-to-noise ratio, ``10 log10(data_range^2 / mean((x - y)^2))``, in decibels.

    The mean square is taken over each image and the decibels are averaged over the batch, as tables
    in the literature do. Nothing is clamped. Differentiable.

    Args:
        x: Image(s): ``[B, C, H, W]`` is a batch, anything with fewer axes is one image.
        y: The other, of the same shape; the order does not matter.
        data_range: Largest minus smallest possible value: 1 for [0, 1], 255 for bytes.
        reduction: "mean" over the batch, or "none" for a value per image.
        dtype: Precision of the computation; at least float32 when None.

    Returns:
        A scalar, or ``[B]`` with "none"; ``inf`` where images are equal.

    Raises:
        ShapeError: Shapes differ or are empty, or there are more than 4 axes.
        ConfigError: ``data_range`` <= 0, integer images with ``data_range=1``, unknown reduction.

    Example:
        >>> psnr(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.1))
        tensor(20.)
    """
    x, y = _images("psnr", x, y, data_range, reduction, dtype)
    square = (x - y).square().flatten(1).mean(dim=1)
    values = 20 * math.log10(data_range) - 10 * square.log10()
    return values.mean() if reduction == "mean" else values


def ssim(
    x: Tensor,
    y: Tensor,
    data_range: float = 1.0,
    *,
    reduction: Reduction = "mean",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Structural similarity, the mean over positions, channels and images.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", IEEE TIP 2004, Eq. 13: ``(2 mx my + C1) (2 sxy + C2) / ((mx^2 + my^2 +
    C1) (sx^2 + sy^2 + C2))`` with means, variances and covariance under an 11x11 Gaussian window of
    sigma 1.5, ``C1 = (0.01 range)^2``, ``C2 = (0.03 range)^2``, at positions where the window lies
    inside the image. Channels are treated apart and averaged. (scikit-image gives the same with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``.) Differentiable.

    Args:
        x: Image(s): ``[B, C, H, W]``, ``[C, H, W]`` or ``[H, W]``, with H and W at least 11.
        y: The other, of the same shape; the order does not matter.
        data_range: Largest minus smallest possible value: 1 for [0, 1], 255 for bytes.
        reduction: "mean" over the batch, or "none" for a value per image.
        dtype: What to compute in; at least float32 when None. Use ``torch.float64`` for tables.

    Returns:
        A scalar, or ``[B]`` with "none", from -1 to 1.

    Raises:
        ShapeError: Shapes differ, are empty, or are smaller than the window.
        ConfigError: ``data_range`` <= 0, integer images with ``data_range=1``, unknown reduction.

    Example:
        >>> image = torch.linspace(0, 1, 256).reshape(16, 16)
        >>> ssim(image, image)
        tensor(1.)
    """
    x, y = _images("ssim", x, y, data_range, reduction, dtype)
    if x.ndim < 3 or min(x.shape[-2:]) <= 2 * _RADIUS:
        raise ShapeError(
            f"ssim: x must be at least 11 x 11 pixels, got {list(x.shape[1:])}; the axes are "
            "[B, C, H, W], [C, H, W] or [H, W]"
        )
    # Variances do not depend on the origin; one near the values loses fewer digits to cancellation.
    origin = y.detach().flatten(1).mean(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    x, y = x - origin, y - origin
    mean_x, mean_y, squares, product = _blur(torch.stack([x, y, x * x + y * y, x * y]))
    variances = squares - mean_x.square() - mean_y.square()
    covariance = product - mean_x * mean_y
    mean_x, mean_y = mean_x + origin, mean_y + origin
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    values = (luminance * structure).flatten(1).mean(dim=1)
    return values.mean() if reduction == "mean" else values


def _blur(images: Tensor) -> Tensor:
    """Gaussian means of the last two axes where the window fits: [... H W] -> [... H-10 W-10].

    Sums of shifted slices, one axis after the other. SSIM is about 2.5 times faster this way than
    by 11x11 convolutions in float32, and 20 times in float64, on one CPU thread: see ``python -m
    benchmarks core``.
    """
    taps = [math.exp(-((k - _RADIUS) ** 2) / (2 * _SIGMA**2)) for k in range(_RADIUS + 1)]
    scale = 2 * sum(taps[:-1]) + taps[-1]
    for axis in (-1, -2):
        size = images.shape[axis] - 2 * _RADIUS
        total = images.narrow(axis, _RADIUS, size) * (taps[-1] / scale)
        for k, weight in enumerate(taps[:-1]):
            for start in (k, 2 * _RADIUS - k):
                total.add_(images.narrow(axis, start, size), alpha=weight / scale)
        images = total
    return images


def _classified(name: str, logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ShapeError(
            f"{name}: logits must be floating [samples, classes], got {list(logits.shape)} of "
            f"{logits.dtype}; flatten other axes into samples"
        )
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ShapeError(
            f"{name}: labels must be {len(logits)} class indices, got {list(labels.shape)} of "
            f"{labels.dtype}; take the argmax of one-hot labels"
        )
    if logits.numel() == 0:
        raise ShapeError(f"{name}: logits must hold samples, got {list(logits.shape)}")
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise ConfigError(
            f"{name}: labels must be from 0 to {logits.shape[1] - 1}, got {low} to {high}; leave "
            "ignored samples out"
        )
    if bool(logits.isnan().any()):
        raise ConfigError(f"{name}: logits must not be NaN, got {int(logits.isnan().sum())} NaN")


def _images(
    name: str,
    x: Tensor,
    y: Tensor,
    data_range: float,
    reduction: Reduction,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Check and convert; a single image gets a batch axis."""
    if x.shape != y.shape or not 1 <= x.ndim <= 4 or x.numel() == 0:
        raise ShapeError(
            f"{name}: x and y must have one shape of 1 to 4 axes, got {list(x.shape)} and "
            f"{list(y.shape)}; crop or permute one of them"
        )
    if not (data_range > 0 and math.isfinite(data_range)):
        raise ConfigError(f"{name}: data_range must be positive, got {data_range}")
    integer = not (x.is_floating_point() and y.is_floating_point())
    if integer and data_range == 1:
        raise ConfigError(
            f"{name}: data_range must be given for integer images, got {x.dtype}, {y.dtype} and 1; "
            "pass data_range=255 for bytes"
        )
    if reduction not in ("mean", "none"):
        raise ConfigError(f"{name}: reduction must be 'mean' or 'none', got {reduction!r}")
    if dtype is None:
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    return (x, y) if x.ndim == 4 else (x[None], y[None])
