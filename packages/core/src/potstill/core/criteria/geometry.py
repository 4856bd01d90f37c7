"""RKD: distances between the items of a batch, and angles at every triple of them.

Both criteria see the features only through their Gram matrix G, centred (distances and angles do
not move with the mean, but rounding errors grow with it) and in float64 (N^2 numbers are cheap).
The N^3 cosines are visited a few anchors at a time, with their gradient in closed form:

    cos_ijk = (G_jk - G_ij - G_ik + G_ii) / (d_ij d_ik),   d_ij^2 = G_ii + G_jj - 2 G_ij
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from potstill.core.criteria.blocks import Gradient, blocks, together
from potstill.core.criteria.relation import Student, Teacher, items

__all__ = ["rkd_a", "rkd_d"]


def _gram(f: Tensor) -> Tensor:
    """Gram matrix of centred items [N N], float64 where the device has it."""
    f = f - f.mean(0)
    f = f if f.device.type == "mps" else f.double()
    return f @ f.mT


def _distances(gram: Tensor) -> Tensor:
    """Distances [N N]; 0 with gradient 0 between equal items."""
    norms = gram.diagonal()
    squares = norms.unsqueeze(0) + norms.unsqueeze(1) - 2 * gram
    # What the subtraction cannot resolve is no distance.
    noise = torch.finfo(gram.dtype).eps * (norms.unsqueeze(0) + norms.unsqueeze(1))
    apart = squares > noise
    return squares.where(apart, 1.0).sqrt() * apart


def rkd_d(
    f_s: Student, f_t: Teacher, *, normalize: bool = False, teacher_grad: bool = False
) -> Float[Tensor, ""]:
    """Relational distillation of distances.

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019 (RKD-D).
    ``L = mean_ij h(d_s[i, j] / mean d_s - d_t[i, j] / mean d_t)`` with h the smooth l1 (beta 1), d
    pairwise distances and their mean that of the positive ones; over all N^2 pairs, diagonal
    included. The authors weigh it 25.

    Args:
        f_s: Features of the student, [N ...].
        f_t: Features of the teacher, [N ...].
        normalize: L2-normalize items first (mmrazor's default).
        teacher_grad: Let gradients flow into ``f_t``.

    Raises:
        ShapeError: Other batches, or fewer than 2 items.
    """
    f_s, f_t = items("rkd_d", f_s, f_t, rows=2, teacher_grad=teacher_grad)
    kind = f_s.dtype

    def relative(f: Tensor) -> Tensor:
        d = _distances(_gram(F.normalize(f) if normalize else f))
        return d / (d.sum() / (d > 0).sum().clamp_min(1)).clamp_min(torch.finfo(d.dtype).tiny)

    return F.smooth_l1_loss(relative(f_s), relative(f_t)).to(kind)


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d > 0, 1 / d.where(d > 0, 1.0), 0.0)


def _cosines(gram: Tensor, inverse: Tensor, anchors: slice) -> Tensor:
    """Cos at anchors i between j and k, [n N N]; 0 where j or k coincides with the anchor."""
    at = gram[anchors]
    own = gram.diagonal()[anchors]
    cosines = gram - at.unsqueeze(2) - at.unsqueeze(1) + own[:, None, None]
    return cosines * inverse[anchors].unsqueeze(2) * inverse[anchors].unsqueeze(1)


def _angles_whole(f_s: Tensor, f_t: Tensor) -> Tensor:
    """The reference: all triples at once, by plain torch operations."""
    everything = slice(None)
    gram_s, gram_t = _gram(f_s), _gram(f_t)
    cos_s = _cosines(gram_s, _inverse(_distances(gram_s)), everything)
    cos_t = _cosines(gram_t, _inverse(_distances(gram_t)), everything)
    return F.smooth_l1_loss(cos_s, cos_t)


def _angles_sweep(
    f_s: Tensor, f_t: Tensor, *, wanted: tuple[bool, bool]
) -> tuple[Tensor, list[Gradient | None]]:
    """Value and gradient with respect to ``f_s``, a block of anchors at a time.

    With g = clamp(cos_s - cos_t, -1, 1), the slope of the smooth l1, and w = g / (d_ij d_ik):
    dL/dG_jk += w, dL/dG_ij -= 2 sum_k w (both arms), dL/dG_ii += sum_jk w, and through the
    distances dL/dd_ij = -2/d_ij sum_k g cos_s, dd/dG = (e_ii + e_jj - 2 e_ij) / (2 d).
    """
    kind, n = f_s.dtype, len(f_s)
    gram_s, gram_t = _gram(f_s), _gram(f_t)
    inverse_s, inverse_t = _inverse(_distances(gram_s)), _inverse(_distances(gram_t))
    # The cancellation is behind us in float64 only if the cosines are formed in it; their
    # comparison, which is where the time goes, runs in the inputs' precision.
    total = gram_s.new_zeros(())
    slope = torch.zeros_like(gram_s)
    for anchors in blocks(f_s, 4 * n * n):
        cos_s = _narrow_cosines(gram_s, inverse_s, anchors, kind)
        g = cos_s - _narrow_cosines(gram_t, inverse_t, anchors, kind)
        clipped = g.clamp(-1, 1)
        # smooth l1 = c (x - c / 2) with c the clipped difference
        total += torch.linalg.vecdot(clipped.flatten(), g.sub_(clipped, alpha=0.5).flatten())
        if not wanted[0]:
            continue
        by = inverse_s[anchors]
        through = torch.linalg.vecdot(clipped, cos_s).to(by) * by.square()  # [n N], over d_ij^2
        clipped.mul_(by.to(kind).unsqueeze(2)).mul_(by.to(kind).unsqueeze(1))
        arms = clipped.sum(2).to(slope)
        slope += clipped.sum(0).to(slope)
        slope[anchors] += 2 * (through - arms)
        diagonal = slope.diagonal()
        diagonal[anchors] += arms.sum(1) - through.sum(1)
        diagonal -= through.sum(0)
    value = (total / n**3).to(kind)
    if not wanted[0]:
        return value, [None, None]
    centred = (f_s - f_s.mean(0)).to(slope)
    pull = (slope + slope.mT) @ centred / n**3
    gradient = Gradient(f_s)
    gradient.write(slice(None), (pull - pull.mean(0)).to(kind))
    return value, [gradient, None]


def _narrow_cosines(gram: Tensor, inverse: Tensor, anchors: slice, kind: torch.dtype) -> Tensor:
    """`_cosines`, formed item by item in float64 and kept in ``kind``."""
    at, by = gram[anchors], inverse[anchors]
    out = torch.empty(len(at), *gram.shape, dtype=kind, device=gram.device)
    for i in range(len(at)):
        cosines = gram - at[i].unsqueeze(1)
        cosines.sub_(at[i]).add_(gram[anchors.start + i, anchors.start + i])
        torch.mul(cosines.mul_(by[i].unsqueeze(1)), by[i], out=out[i])
    return out


def rkd_a(
    f_s: Student,
    f_t: Teacher,
    *,
    normalize: bool = False,
    teacher_grad: bool = False,
    blocked: bool = True,
) -> Float[Tensor, ""]:
    """Relational distillation of angles.

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019 (RKD-A).
    ``L = mean_ijk h(cos_s[j, i, k] - cos_t[j, i, k])`` with h the smooth l1 (beta 1) and the cosine
    that of the angle at i, over all N^3 triples. The authors
    weigh it 50. Costs O(N^3) time, but not O(N^2 D + N^3) memory.

    Args:
        f_s: Features of the student, [N ...].
        f_t: Features of the teacher, [N ...].
        normalize: L2-normalize items first (mmrazor's default).
        teacher_grad: Let gradients flow into ``f_t``.
        blocked: Visit a few anchors at a time, gradient in closed form; False gives plain torch
            operations (double backward), with N^3 memory.

    Raises:
        ShapeError: Other batches, or fewer than 3 items.
    """
    f_s, f_t = items("rkd_a", f_s, f_t, rows=3, teacher_grad=teacher_grad)
    if normalize:
        f_s, f_t = F.normalize(f_s), F.normalize(f_t)
    if not blocked or teacher_grad or torch.compiler.is_compiling():
        return _angles_whole(f_s, f_t).to(f_s.dtype)
    return together(_angles_sweep, f_s, f_t)
