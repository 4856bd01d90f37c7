"""Criteria on feature maps [N C H W]: attention, channels, flow between layers, pyramids.

Where sizes differ, the larger map is averaged down (`at`, `nst`, `fsp`, as in the papers' codes);
widths that differ need a projector, except where the criterion sums over channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from potstill.core.criteria.logit import kd
from potstill.core.criteria.pairs import pair
from potstill.core.errors import ConfigError

__all__ = ["at", "cwd", "fsp", "ickd", "nst", "pkd", "review_hcl"]

Maps = Float[Tensor, "batch channels_s height_s width_s"]
TeacherMaps = Float[Tensor, "batch channels_t height_t width_t"]

_BATCH = slice(0, 1)


def _same_size(f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
    """Average both maps down to the smaller height and width."""
    size = (min(f_s.shape[2], f_t.shape[2]), min(f_s.shape[3], f_t.shape[3]))
    f_s, f_t = (f if f.shape[2:] == size else F.adaptive_avg_pool2d(f, size) for f in (f_s, f_t))
    return f_s, f_t


def _attention(f: Tensor, p: float) -> Tensor:
    """Unit vectors [N HW] of the mean over channels of |f|^p."""
    # Scaling each item by its largest entry changes nothing after normalization and keeps
    # powers of large activations finite.
    top = f.abs().amax((1, 2, 3), keepdim=True).detach()
    f = f / top.clamp_min(torch.finfo(f.dtype).tiny)
    return F.normalize(f.abs().pow(p).mean(1).flatten(1), dim=1)


def at(
    f_s: Maps,
    f_t: TeacherMaps,
    *,
    p: float = 2.0,
    form: Literal["code", "paper"] = "code",
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Attention transfer: where the maps are active, channels summed out.

    Source: Zagoruyko and Komodakis, ICLR 2017, Eq. (2). With ``u`` the l2-normalized
    ``mean_c |f|^p``, the authors' code takes ``mean_{n,hw} (u_s - u_t)^2`` (default, weight 1000),
    the paper ``mean_n ||u_s - u_t||_2``; they differ by a square and a factor H W.

    Args:
        f_s: Maps of the student, [N C H W].
        f_t: Maps of the teacher; any channels, the larger map is averaged down to the smaller.
        p: Power of the activations, at least 1.
        form: ``"code"`` or ``"paper"``.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Not maps of the same batch.
        ConfigError: An unknown form, or p below 1.
    """
    if p < 1 or form not in ("code", "paper"):
        raise ConfigError(f"at: p must be >= 1 and form code or paper, got {p} and {form!r}")
    f_s, f_t = pair("at", f_s, f_t, same=_BATCH, ndim=4, teacher_grad=teacher_grad)
    f_s, f_t = _same_size(f_s, f_t)
    gap = _attention(f_s, p) - _attention(f_t, p)
    # vector_norm has gradient 0 at 0: student = teacher is no trap.
    return gap.square().mean() if form == "code" else torch.linalg.vector_norm(gap, dim=1).mean()


def cwd(f_s: Maps, f_t: Maps, *, T: float = 4.0, teacher_grad: bool = False) -> Float[Tensor, ""]:
    """Channel-wise distillation: `kd` over the positions of each channel.

    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021.
    ``L = T^2 / (N C) sum_{n,c} KL(softmax_hw(f_t / T) || softmax_hw(f_s / T))``.

    Args:
        f_s: Maps or logits of the student, [N C H W].
        f_t: Features of the teacher, same shape.
        T: Temperature > 0.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: The maps differ in shape.
        ConfigError: T is not positive.
    """
    f_s, f_t = pair("cwd", f_s, f_t, ndim=4, teacher_grad=teacher_grad)
    return kd(f_s.flatten(2), f_t.flatten(2), T=T, teacher_grad=teacher_grad)


def _standardized(f: Tensor, eps: float) -> Tensor:
    """Channels with mean 0 and (unbiased) variance 1 over batch and positions."""
    f = f.transpose(0, 1).flatten(1)
    gap = f - f.mean(1, keepdim=True)
    variance = gap.square().sum(1, keepdim=True) / max(f.shape[1] - 1, 1)
    # A clamp under the root: the gradient of sqrt at 0 is infinite.
    return gap / (variance.clamp_min(torch.finfo(f.dtype).tiny).sqrt() + eps)


def pkd(
    f_s: Maps, f_t: Maps, *, eps: float = 1e-6, teacher_grad: bool = False
) -> Float[Tensor, ""]:
    """Half the mean squared difference of channels standardized over the batch.

    Source: Cao et al., PKD: Distillation for Object Detectors via Pearson Correlation, NeurIPS
    2022: equals 1 - the correlation of channels. ``L = mean (s(f_s) - s(f_t))^2 / 2``.

    Args:
        f_s: Maps of the student, [N C H W].
        f_t: Maps of the teacher, same shape.
        eps: Added to the deviation (the authors').
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: The maps differ in shape.
    """
    f_s, f_t = pair("pkd", f_s, f_t, ndim=4, teacher_grad=teacher_grad)
    return (_standardized(f_s, eps) - _standardized(f_t, eps)).square().mean() / 2


def ickd(
    f_s: Maps,
    f_t: Float[Tensor, "batch channels_s height_t width_t"],
    *,
    per_batch: Literal["N", "N2"] = "N",
    teacher_grad: bool = False,
) -> Float[Tensor, ""]:
    """Correlation between channels, item by item.

    Source: Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved KD, ICCV 2021.
    ``L = sum_n ||R(F_s F_s') - R(F_t F_t')||^2 / (C N)``, R normalizes the rows of the Gram matrix
    of channels. torchdistill divides by ``C N^2`` instead: ``per_batch="N2"``; the mean over items
    is the default since its size does not fall with the batch.

    Args:
        f_s: Maps of the student, [N C H W].
        f_t: Maps of the teacher; the same channels, any size.
        per_batch: Divide by N or its square.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Other batch or channels.
    """
    f_s, f_t = pair("ickd", f_s, f_t, same=slice(0, 2), ndim=4, teacher_grad=teacher_grad)
    grams = [F.normalize(f @ f.mT, dim=2) for f in (f_s.flatten(2), f_t.flatten(2))]
    total = (grams[0] - grams[1]).square().sum() / (f_s.shape[0] * f_s.shape[1])
    return total / f_s.shape[0] if per_batch == "N2" else total


def _flow(first: Tensor, second: Tensor) -> Tensor:
    first, second = _same_size(first, second)
    first, second = first.flatten(2), second.flatten(2)
    return first @ second.mT / first.shape[2]


def fsp(
    f_s: tuple[Tensor, Tensor], f_t: tuple[Tensor, Tensor], *, teacher_grad: bool = False
) -> Float[Tensor, ""]:
    """Flow of the solution procedure: how two layers' channels vary together over positions.

    Source: Yim et al., A Gift from Knowledge Distillation, CVPR 2017, Eq. (1).
    ``G_ij = mean_hw a_i b_j``, ``L = mean (G_s - G_t)^2``.

    Args:
        f_s: Two maps of the student, [N C1 H W] and [N C2 H W]; the larger is averaged down.
        f_t: Two maps of the teacher with the same channels.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Other batch or channels.
    """
    pairs = [
        pair("fsp", s, t, same=slice(0, 2), ndim=4, teacher_grad=teacher_grad)
        for s, t in zip(f_s, f_t, strict=True)
    ]
    (first_s, first_t), (second_s, second_t) = pairs
    return (_flow(first_s, second_s) - _flow(first_t, second_t)).square().mean()


def nst(f_s: Maps, f_t: TeacherMaps, *, teacher_grad: bool = False) -> Float[Tensor, ""]:
    """Neuron selectivity transfer: squared MMD between channels, kernel ``(x . y)^2``.

    Source: Huang and Wang, Like What You Like, 2017.
    ``L = mean_cd [k(s_c, s_d) + k(t_c, t_d) - 2 k(s_c, t_d)]``. Channels are l2-normalized over
    positions; means over all pairs of channels and over the batch.

    Args:
        f_s: Maps of the student, [N C H W].
        f_t: Maps of the teacher; any channels, the larger map is averaged down.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Not maps of the same batch.
    """
    f_s, f_t = pair("nst", f_s, f_t, same=_BATCH, ndim=4, teacher_grad=teacher_grad)
    f_s, f_t = (F.normalize(f.flatten(2), dim=2) for f in _same_size(f_s, f_t))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT).square().mean()

    return kernel(f_t, f_t) + kernel(f_s, f_s) - 2 * kernel(f_s, f_t)


def review_hcl(
    f_s: Maps, f_t: Maps, *, levels: tuple[int, ...] = (4, 2, 1), teacher_grad: bool = False
) -> Float[Tensor, ""]:
    """Hierarchical context loss: squared differences at full size and averaged to a pyramid.

    Source: Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021.
    ``L = sum_l w_l mean (a_l(f_s) - a_l(f_t))^2`` with a_0 the map itself and a_l its average at
    level l. Weights 1, 1/2, 1/4 ... divided by their sum; levels not smaller than the map
    are left out.

    Args:
        f_s: Maps of the student, [N C H W].
        f_t: Maps of the teacher, same shape.
        levels: Side lengths of the averaged maps.
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: The maps differ in shape.
    """
    f_s, f_t = pair("review_hcl", f_s, f_t, ndim=4, teacher_grad=teacher_grad)
    gap = f_s - f_t  # averaging is linear: one pyramid of the difference
    terms = [gap.square().mean()]
    terms += [
        F.adaptive_avg_pool2d(gap, level).square().mean()
        for level in levels
        if level < gap.shape[2]
    ]
    weights = gap.new_tensor([0.5**k for k in range(len(terms))])
    return (torch.stack(terms) * weights).sum() / weights.sum()
