"""Exposure: how much better a model knows its canaries than ones it never saw."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError

__all__ = ["confidence", "exposure", "exposure_floor"]


def confidence(z: Float[Tensor, "items classes"], y: Tensor) -> Float[Tensor, " items"]:
    """``log p_y - log (1 - p_y)`` in float64: the larger, the surer of the label."""
    z = z.double()
    own = z.gather(1, y[:, None])
    return (own - z.scatter(1, y[:, None], -torch.inf).logsumexp(1, keepdim=True)).squeeze(1)


def exposure(
    inserted: Float[Tensor, " canaries"], others: Float[Tensor, " canaries"]
) -> Float[Tensor, " canaries"]:
    """Bits by which the rank of each canary tells that it was trained on.

    Source: Carlini et al., The Secret Sharer, USENIX Security 2019, by ranks:
    ``log2 N - log2 rank`` among the ``N - 1`` canaries that were not inserted, and itself. Equal
    values share a rank. Without any memory this is not 0: see `exposure_floor`.

    Args:
        inserted: Confidence in the wrong label, of canaries that were trained on.
        others: The same of canaries that were not.

    Example:
        >>> exposure(torch.tensor([9.0, 0.5]), torch.tensor([0.0, 1.0, 2.0]))
        tensor([2.0000, 0.4150], dtype=torch.float64)
    """
    better = (others[None] > inserted[:, None]).double().sum(1)
    equal = (others[None] == inserted[:, None]).double().sum(1)
    total = torch.tensor(len(others) + 1, dtype=torch.float64)
    return total.log2() - (better + equal / 2 + 1).log2()


def exposure_floor(count: int) -> float:
    """Mean exposure of a canary among ``count`` without any memory, in bits.

    ``log2 N - (1/N) sum log2 r``; with N it grows to ``log2 e`` = 1.4427.

    Raises:
        ConfigError: Fewer than one.

    Example:
        >>> round(exposure_floor(145), 6)
        1.408788
    """
    if count < 1:
        raise ConfigError(f"exposure_floor: count must be at least 1, got {count}")
    return math.log2(count) - math.fsum(math.log2(r) for r in range(1, count + 1)) / count
