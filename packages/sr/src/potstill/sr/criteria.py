"""Criteria of super-resolution: feature affinity, wavelet high frequencies, contrastive ratio."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError, ShapeError

__all__ = ["contrastive_ratio", "spatial_affinity", "wavelet_l1"]


def spatial_affinity(
    f_s: Float[Tensor, "batch channels_s h w"],
    f_t: Float[Tensor, "batch channels_t h w"],
    size: int = 24,
) -> Float[Tensor, ""]:
    """Match which pixels of a map resemble which: FAKD. The widths may differ.

    Source: He, Dai, Lu, Jiang, Xia, "FAKD: Feature-Affinity Based Knowledge Distillation for
    Efficient Image Super-Resolution", ICIP 2020, Eqs. (1) and (2): ``A = F^T F`` of the pixels'
    feature vectors, each of length 1; the loss is ``mean |A_s - A_t|``. A has (h w)^2 entries, so
    maps larger than ``size`` are averaged down to it first, which the paper does not do.

    Args:
        f_s: Map of the student.
        f_t: Map of the teacher; gets no gradient.
        size: Largest side that is compared.

    Raises:
        ShapeError: Not two maps of one batch and one size.

    Example:
        >>> f = torch.rand(2, 8, 6, 6)
        >>> float(spatial_affinity(f, 3 * f)) < 1e-6
        True
    """
    if f_s.ndim != 4 or f_t.ndim != 4 or f_s.shape[0] != f_t.shape[0]:
        raise ShapeError(
            f"spatial_affinity: f_s and f_t must be [B, C, H, W] of one batch, got "
            f"{list(f_s.shape)} and {list(f_t.shape)}"
        )
    if f_s.shape[2:] != f_t.shape[2:]:
        raise ShapeError(
            f"spatial_affinity: f_t must be {list(f_s.shape[2:])} pixels like f_s, got "
            f"{list(f_t.shape[2:])}; tap layers of one resolution"
        )
    return (_affinity(f_s, size) - _affinity(f_t.detach(), size)).abs().mean()


def _affinity(f: Tensor, size: int) -> Tensor:
    """Cosines between all pixels: [B C H W] -> [B HW HW]."""
    f = _wide(f)
    if max(f.shape[2:]) > size:
        f = F.adaptive_avg_pool2d(f, (min(f.shape[2], size), min(f.shape[3], size)))
    f = F.normalize(f.flatten(2), dim=1)
    return f.transpose(1, 2) @ f


def wavelet_l1(
    sr: Float[Tensor, "batch channels h w"],
    target: Float[Tensor, "batch channels h w"],
    levels: int = 2,
) -> Float[Tensor, ""]:
    """L1 between the high frequencies of two images, by an orthonormal Haar wavelet.

    Source: the high bands of Jiang, Feng, Zhang, "MTKD: Multi-Teacher Knowledge Distillation for
    Image Super-Resolution", ECCV 2024, Eq. (3), as a mean over the entries of all bands; the low
    band is left to the terms on pixels. ``L = mean |H(sr) - H(target)|``, H all high bands.

    Args:
        sr: Image of the student.
        target: Image of the teacher, or the photograph; gets no gradient.
        levels: How often the low band is split; the sides must be multiples of ``2 ** levels``,
            rows and columns beyond are left out.

    Raises:
        ShapeError: Shapes differ, or a side is shorter than ``2 ** levels``.
        ConfigError: ``levels`` < 1.

    Example:
        >>> x = torch.rand(1, 3, 8, 8)
        >>> float(wavelet_l1(x + 0.25, x)) < 1e-6          # a constant has no high frequencies
        True
    """
    if levels < 1:
        raise ConfigError(f"wavelet_l1: levels must be at least 1, got {levels}")
    if sr.shape != target.shape or sr.ndim != 4 or min(sr.shape[2:]) < 2**levels:
        raise ShapeError(
            f"wavelet_l1: sr and target must be [B, C, H, W] of one shape with sides of at least "
            f"{2**levels}, got {list(sr.shape)} and {list(target.shape)}"
        )
    low = _wide(sr) - _wide(target.detach())  # the transform is linear
    total, count = low.new_zeros(()), 0
    for _ in range(levels):
        h, w = (side - side % 2 for side in low.shape[2:])
        low = low[..., :h, :w]
        a, b = low[..., 0::2, 0::2], low[..., 0::2, 1::2]
        c, d = low[..., 1::2, 0::2], low[..., 1::2, 1::2]
        high = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 2
        total, count = total + high.abs().sum(), count + high.numel()
        low = (a + b + c + d) / 2
    return total / count


def contrastive_ratio(
    sr: Float[Tensor, "batch channels h w"],
    target: Float[Tensor, "batch channels h w"],
    blurred: Float[Tensor, "batch channels h w"],
    eps: float = 1e-3,
) -> Float[Tensor, ""]:
    """Be near the teacher's image and far from blurred ones: CSD's ratio.

    Source: Wang, Wang, Zhang, Jiang, Zhao, "Towards Compact Single Image Super-Resolution via
    Contrastive Self-distillation", IJCAI 2021, Eq. (4): ``d(S, T) / mean_k d(S, N_k)``, the
    negatives being the other bicubic images of the batch. The paper measures d in VGG features;
    here it is the L1 distance of pixels and of their differences, so that no network with a
    licence of its own is needed. A batch of one has its own bicubic image as the negative.

    Args:
        sr: Images of the student.
        target: Images of the teacher; no gradient.
        blurred: Bicubic enlargements of the same inputs; no gradient.
        eps: Added to the denominator.

    Raises:
        ShapeError: Shapes differ.

    Example:
        >>> x, blurred = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
        >>> float(contrastive_ratio(x, x, blurred))
        0.0
    """
    if not sr.shape == target.shape == blurred.shape or sr.ndim != 4:
        raise ShapeError(
            f"contrastive_ratio: sr, target and blurred must be [B, C, H, W] of one shape, got "
            f"{list(sr.shape)}, {list(target.shape)} and {list(blurred.shape)}"
        )
    target, blurred = target.detach(), blurred.detach()
    near = _distance(sr, target)
    shifts = range(1, len(sr)) if len(sr) > 1 else range(1)
    far = torch.stack([_distance(sr, blurred.roll(k, dims=0)) for k in shifts]).mean(dim=0)
    return (near / (far + eps)).mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """L1 of pixels and of neighbours' differences, one value an image."""
    gap = _wide(a) - _wide(b)
    parts = (gap, gap.diff(dim=2), gap.diff(dim=3))
    return torch.stack([part.abs().flatten(1).mean(dim=1) for part in parts]).sum(dim=0)


def _wide(x: Tensor) -> Tensor:
    """At least float32: half precision is too coarse for small differences."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
