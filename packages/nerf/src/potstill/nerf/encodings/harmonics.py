"""Real spherical harmonics of directions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError, ShapeError

__all__ = ["harmonics"]


def harmonics(
    directions: Float[Tensor, "points 3"], degree: int = 4
) -> Float[Tensor, "points basis"]:
    """The first ``degree`` bands of the real spherical harmonics.

    Order (l, m) with m from -l to l, and the signs of tiny-cuda-nn (which takes ``(d + 1) / 2``;
    here it is the direction itself). They are the orthonormal real harmonics with the
    Condon-Shortley phase.

    Args:
        directions: Vectors of any length but zero.
        degree: Number of bands, 1 to 4: 1, 4, 9 or 16 functions.

    Raises:
        ShapeError: ``directions`` is not [points, 3], or holds a zero vector (looked for on a CPU
            only).
        ConfigError: ``degree`` is not 1 to 4.

    Example:
        >>> harmonics(torch.tensor([[0.0, 0.0, 2.0]]), degree=2).abs()
        tensor([[0.2821, 0.0000, 0.4886, 0.0000]])
    """
    if degree not in (1, 2, 3, 4):
        raise ConfigError(f"harmonics: degree must be 1, 2, 3 or 4, got {degree}")
    if directions.ndim != 2 or directions.shape[1] != 3:
        raise ShapeError(f"harmonics: directions must be [points, 3], got {list(directions.shape)}")
    length = directions.norm(dim=1, keepdim=True)
    if length.device.type == "cpu" and bool((length == 0).any()):  # elsewhere it would wait
        raise ShapeError(
            f"harmonics: directions must not be zero, got {int((length == 0).sum())} zero vectors"
        )
    x, y, z = (directions / length).unbind(1)
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree > 1:
        c = 0.48860251190291987
        basis += [-c * y, c * z, -c * x]
    if degree > 2:
        xx, yy, zz = x * x, y * y, z * z
        c = 1.0925484305920792
        basis += [c * x * y, -c * y * z, 0.94617469575756 * zz - 0.31539156525252, -c * x * z]
        basis += [0.5462742152960396 * (xx - yy)]
    if degree > 3:
        basis += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644657 * y * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),
            -0.4570457994644657 * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=1)
