"""DIST: correlations of probabilities instead of equality, within rows and within classes.

Not row-wise, since the correlation within a class runs over the batch. It is still evaluated in
blocks of rows: one visit gathers five sums for each class, a second writes the gradient.
"""

from __future__ import annotations

import warnings
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from potstill.core.criteria.blocks import Gradient, blocks, compute_dtype, together
from potstill.core.criteria.rows import flatten, positive, valid_rows

__all__ = ["dist"]


def _inverse_norm(squares: Tensor, raw: Tensor, floor: float) -> Tensor:
    """``1 / max(norm of the centred, floor * norm of the raw)``."""
    least = (floor**2 * raw).detach().clamp_min(torch.finfo(raw.dtype).tiny)
    return torch.maximum(squares, least).rsqrt()


def _pearson(
    q: Tensor, p: Tensor, live: Tensor, dim: int, eps: float, floor: float
) -> tuple[Tensor, Tensor]:
    """Correlations along ``dim`` over live entries, and how many entries each had."""
    count = live.sum(dim, keepdim=True)
    a = (q - q.sum(dim, keepdim=True) / count.clamp_min(1)).masked_fill(~live, 0)
    b = (p - p.sum(dim, keepdim=True) / count.clamp_min(1)).masked_fill(~live, 0)
    norms = 1 / (
        _inverse_norm(a.square().sum(dim), q.square().sum(dim), floor)
        * _inverse_norm(b.square().sum(dim), p.square().sum(dim), floor)
    )
    return (a * b).sum(dim) / (norms + eps), count.squeeze(dim)


def _whole(
    z_s: Tensor, z_t: Tensor, T: float, beta: float, gamma: float, eps: float, floor: float,
    valid: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The reference: plain torch operations; ``valid`` says which rows [N] count, by default all.

    With ``valid`` no shape depends on the data, as ``torch.compile`` needs it.
    """
    if valid is None:
        valid = z_s.new_ones(len(z_s), dtype=torch.bool)
    rows, dead = valid.sum(), ~valid.unsqueeze(1)
    z_s, z_t = z_s.masked_fill(dead, 0), z_t.masked_fill(dead, 0)
    live = ~(z_s.isneginf() & z_t.isneginf() | dead)
    q, p = (torch.softmax(z / T, -1).masked_fill(dead, 0) for z in (z_s, z_t))
    inter, _ = _pearson(q, p, live, 1, eps, floor)
    intra, count = _pearson(q, p, live, 0, eps, floor)
    classes = count > 0
    intra_mean = (intra * classes).sum() / classes.sum().clamp_min(1)
    inter_mean = (inter * valid).sum() / rows.clamp_min(1)
    within_class = gamma * (rows > 1)  # a single row has nothing to correlate there
    return T**2 * (
        beta * ((rows > 0).to(inter_mean) - inter_mean) + within_class * (1 - intra_mean)
    )


def _sweep(
    T: float,
    beta: float,
    gamma: float,
    eps: float,
    floor: float,
    z_s: Tensor,
    z_t: Tensor,
    *,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, list[Gradient | None]]:
    """Value and gradient with respect to ``z_s``; every class is live in at least one model."""
    kind, (num_rows, num_classes) = compute_dtype(z_s.dtype), z_s.shape

    def probabilities(block: slice) -> tuple[Tensor, Tensor]:
        pair = (z[block].to(kind) for z in (z_s, z_t))
        q, p = (torch.softmax(z if T == 1 else z / T, -1) for z in pair)
        return q, p

    # Sums for each class, of differences to the first row: a point of the data as the shift keeps
    # one-pass variances exact to N rounding errors.
    q_0, p_0 = probabilities(slice(0, 1))
    sum_q, sum_p, sum_qq, sum_pp, sum_qp = z_s.new_zeros(5, num_classes, dtype=kind)
    rows = [z_s.new_empty(num_rows, dtype=kind) for _ in range(3)]
    for block in blocks(z_s):
        q, p = probabilities(block)
        a, b = q - q_0, p - p_0
        for total, x, y in ((sum_qp, a, b), (sum_qq, a, a), (sum_pp, b, b)):
            total += (x * y).sum(0)
        sum_q += a.sum(0)
        sum_p += b.sum(0)
        a, b = q.sub_(1 / num_classes), p.sub_(1 / num_classes)
        for out, (x, y) in zip(rows, ((a, a), (b, b), (a, b)), strict=True):
            out[block] = torch.linalg.vecdot(x, y)

    raw_rows = (rows[0] + 1 / num_classes, rows[1] + 1 / num_classes)  # probabilities sum to 1
    mean_q, mean_p = sum_q / num_rows, sum_p / num_rows
    raw_q = sum_qq + 2 * q_0[0] * sum_q + num_rows * q_0[0].square()
    raw_p = sum_pp + 2 * p_0[0] * sum_p + num_rows * p_0[0].square()
    centred = (
        sum_qq - sum_q * mean_q,
        sum_pp - sum_p * mean_p,
        sum_qp - sum_q * mean_p,
    )
    rho_row, by_p_row, by_q_row = _slopes((*rows,), raw_rows, eps, floor)
    rho_class, by_p_class, by_q_class = _slopes(centred, (raw_q, raw_p), eps, floor)
    value = T**2 * (beta * (1 - rho_row.mean()) + gamma * (1 - rho_class.mean()))
    if not wanted[0]:
        return value, [None, None]

    # d L / d q_nc = q_nc (k_n + k_c) - p_nc (l_n + l_c) + m_c, up to a constant in each row,
    # which the softmax takes out again.
    for coefficients, weight in (
        ((by_p_row, by_q_row), beta / num_rows),
        ((by_p_class, by_q_class), gamma / num_classes),
    ):
        for coefficient in coefficients:
            coefficient.mul_(weight * T)
    offset = by_p_class * (mean_p + p_0[0]) - by_q_class * (mean_q + q_0[0])
    gradient = Gradient(z_s)
    for block in blocks(z_s):
        q, p = probabilities(block)
        h = (by_q_row[block].unsqueeze(1) + by_q_class).mul_(q)
        h.sub_(p.mul_(by_p_row[block].unsqueeze(1) + by_p_class)).add_(offset)
        gradient.write(block, h.sub_(torch.linalg.vecdot(h, q).unsqueeze(1)).mul_(q))
    return value, [gradient, None]


def _slopes(
    centred: tuple[Tensor, ...], raw: tuple[Tensor, ...], eps: float, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """From sums of squares: rho, and k, l in ``d (1 - rho) / d a = l a - k b``."""
    (qq, pp, qp), (raw_q, raw_p) = centred, raw
    inverse_q, inverse_p = _inverse_norm(qq, raw_q, floor), _inverse_norm(pp, raw_p, floor)
    by_p = 1 / (1 / (inverse_q * inverse_p) + eps)
    at_floor = qq <= floor**2 * raw_q
    by_q = qp * by_p.square() * inverse_q / inverse_p
    return qp * by_p, by_p, by_q.masked_fill(at_floor, 0)


def dist(
    z_s: Float[Tensor, "*rows classes"],
    z_t: Float[Tensor, "*rows classes"],
    target: Shaped[Tensor, ...] | None = None,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    T: float = 1.0,
    t_squared: bool = True,
    eps: float = 1e-8,
    floor: float = 1e-3,
    ignore_index: int = -100,
    dim: int | None = None,
    teacher_grad: bool = False,
    blocked: bool = True,
) -> Float[Tensor, ""]:
    """Correlate probabilities with the teacher's, within each row and within each class.

    Source: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022.
    ``L = T^2 [beta (1 - mean_n rho(q_n, p_n)) + gamma (1 - mean_c rho(q_c, p_c))]`` with
    Pearson's rho = <a, b> / (|a| |b| + eps) of centred a, b. The authors take (1, 1, 1) on
    ImageNet and (2, 2, 4) on CIFAR-100.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; rows labelled ``ignore_index`` are left out.
        beta: Weight of the correlation within rows.
        gamma: Weight of the correlation within classes.
        T: Temperature > 0.
        t_squared: Multiply by ``T ** 2``.
        eps: Added to the product of norms (the authors'; some codes clamp instead).
        floor: Least norm of a centred vector, relative to that of the vector itself: where
            probabilities are nearly constant, rho is no longer normalized, so that its gradient
            stays bounded (it reaches 1e7 in the authors' code) but not zero.
        ignore_index: The label of rows that do not count.
        dim: The class axis.
        teacher_grad: Let gradients flow into ``z_t``.
        blocked: See `RowOptions`.

    Raises:
        ShapeError: Shapes that differ, or no rows.
        ConfigError: T is not positive.
    """
    positive("dist", "T", T)
    z_s, z_t, shape = flatten("dist", z_s, z_t, dim)
    if not teacher_grad:
        z_t = z_t.detach()
    valid = None
    if target is not None and not target.is_floating_point():
        _, valid = valid_rows("dist", target, ignore_index, shape)
    if valid is not None and not torch.compiler.is_compiling():
        if not bool(valid.all()):  # else there is nothing to leave out, and nothing to copy
            z_s, z_t = z_s[valid], z_t[valid]
        valid = None
        if not len(z_s):
            return z_s.to(compute_dtype(z_s.dtype)).sum()  # 0, with gradient 0
    if len(z_s) == 1 and gamma and not torch.compiler.is_compiling():
        warnings.warn(
            "dist: within a class there is nothing to correlate in a single row; "
            "only the correlation within the row is computed",
            stacklevel=2,
        )
        gamma = 0.0
    options = (beta, gamma, eps, floor)
    plain = not blocked or teacher_grad or torch.compiler.is_compiling()
    if plain or bool(torch.minimum(z_s.amin(), z_t.amin()).isneginf()):
        kind = compute_dtype(z_s.dtype)
        value = _whole(z_s.to(kind), z_t.to(kind), T, *options, valid)
    else:
        value = together(partial(_sweep, T, *options), z_s, z_t)
    return value if t_squared else value / T**2
