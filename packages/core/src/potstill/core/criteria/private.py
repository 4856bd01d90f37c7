"""Distillation on rows that may be private: hot and noisy targets for them."""

from __future__ import annotations

from typing import Unpack

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from potstill.core.criteria.divergence import Logits
from potstill.core.criteria.logit import KD
from potstill.core.criteria.rows import RowOptions, evaluate, positive
from potstill.core.errors import ConfigError, ShapeError
from potstill.core.seed import common_draws

__all__ = ["swing"]


def swing(
    z_s: Logits,
    z_t: Logits,
    private: Float[Tensor, "*rows"],
    target: Shaped[Tensor, ...] | None = None,
    *,
    T: float = 4.0,
    T_max: float = 64.0,
    noise: float = 0.0,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """`kd` with a temperature for each row that grows with how private it is, and noise.

    Source: after Swing Distillation, 2022 (arXiv 2212.08349), whose map from likelihood
    to temperature and scale of noise could not be read; these are ours: ``T_i = T (T_max/T)^s_i``,
    and where ``noise > 0`` the target is ``normalize(max(softmax(z_t/T) + s_i noise Laplace,
    1e-4))`` at T. The factor is ``T^2`` of *all* rows: with ``T_i^2``, the rule elsewhere, the
    gradient of a hot row would stay as large as that of matching logits, and nothing protected. A
    hot row is then a row of weight about ``(T/T_i)^2``: ``kd(..., weight=1 - private)`` does nearly
    the same, and is simpler. Neither keeps a secret that the teacher tells on other rows, or that a
    label term tells: train the *teacher* privately.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        private: Privacy of each row, in [0, 1], shaped like the rows.
        target: Labels [...]; only a mask.
        T: Temperature of rows that are not private.
        T_max: Temperature of those that are.
        noise: Scale of the noise in the target of a private row; drawn from the global stream.
        **options: See `RowOptions`.

    Raises:
        ShapeError: Shapes that do not fit.
        ConfigError: ``private`` outside [0, 1], ``T_max`` below ``T``, or negative noise.
    """
    positive("swing", "T", T)
    if not T <= T_max < float("inf") or not 0 <= noise < float("inf"):
        raise ConfigError(
            f"swing: T_max must be at least T and noise at least 0, got T={T}, T_max={T_max}, "
            f"noise={noise}"
        )
    dim = options.get("dim") or -1
    rows = z_s.movedim(dim, -1).shape[:-1]
    if private.shape != rows:
        raise ShapeError(
            f"swing: private must be {list(rows)} like the rows of z_s, got {list(private.shape)}"
        )
    if not bool(((private >= 0) & (private <= 1)).all()):
        raise ConfigError(
            "swing: private must be in [0, 1] in every row, got values outside or NaN"
        )
    s = private.detach().unsqueeze(-1).movedim(-1, dim).to(z_s.dtype)
    if noise:
        z_t = torch.where(s > 0, _noisy(z_t, s * noise, T, dim), z_t)
    hot = T * (T_max / T) ** private.detach().reshape(-1, 1).to(torch.float32)
    hot = hot.where(private.reshape(-1, 1) > 0, T)
    return evaluate("swing", KD, z_s, z_t, hot, target=target, factor=T**2, **options)


def _noisy(z: Tensor, scale: Tensor, T: float, dim: int) -> Tensor:
    """Logits whose distribution at T has Laplace noise."""
    draws = common_draws(z.device)
    shape = draws.world * len(z), *z.shape[1:]
    u = torch.rand(shape, generator=draws.generator, device=z.device)[draws.mine] - 0.5
    laplace = -u.sign() * torch.log1p(-2 * u.abs())
    p = (torch.softmax(z / T, dim) + scale * laplace).clamp_min(1e-4)
    return T * (p / p.sum(dim, keepdim=True)).log()
