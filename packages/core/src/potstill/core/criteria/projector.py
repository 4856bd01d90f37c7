"""Projectors: maps from the student's features to the teacher's, owned and trained by a criterion.

A projector is a module of a criterion, not of the student: it trains along (through
``objective.parameters()``) and is left behind when the student is saved.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core.errors import ConfigError

__all__ = ["AttentionProjector", "Projected", "Resize", "conv1x1", "mlp"]


class Projected(nn.Module):
    """A criterion behind a projector: ``criterion(projector(f_s), f_t, *context)``.

    Args:
        projector: Maps features of the student to the shape of the teacher's.
        criterion: Criterion that compares them.

    Example:
        >>> import torch
        >>> from potstill.core.criteria import cosine
        >>> criterion = Projected(nn.Linear(4, 6), cosine)
        >>> criterion(torch.zeros(2, 4), torch.ones(2, 6)).ndim
        0
    """

    def __init__(self, projector: nn.Module, criterion: Callable[..., Tensor]) -> None:
        super().__init__()
        self.projector = projector
        self.criterion = criterion

    def forward(self, f_s: Tensor, f_t: Tensor, *context: Any) -> Tensor:
        """Project the student's features and compare."""
        return self.criterion(self.projector(f_s), f_t, *context)


def conv1x1(in_channels: int, out_channels: int, *, norm: bool = True) -> nn.Module:
    """A 1 x 1 convolution between maps [N C H W], by default with batch normalization.

    The convolution needs no bias before a normalization.
    """
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=not norm)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels)) if norm else conv


def mlp(
    in_features: int, out_features: int, *, hidden: int | None = None, depth: int = 2
) -> nn.Module:
    """``depth`` linear layers with GELU in between, on the last axis.

    Args:
        in_features: Width of the student.
        out_features: Width of the teacher.
        hidden: Width in between, by default the teacher's.
        depth: Number of linear layers; 1 is a plain linear map.

    Raises:
        ConfigError: ``depth`` is below 1.
    """
    if depth < 1:
        raise ConfigError(f"mlp: depth must be at least 1, got {depth}")
    hidden = out_features if hidden is None else hidden
    widths = [in_features, *[hidden] * (depth - 1), out_features]
    layers: list[nn.Module] = []
    for i, (width, following) in enumerate(itertools.pairwise(widths)):
        layers += [nn.GELU()] * (i > 0) + [nn.Linear(width, following)]
    return nn.Sequential(*layers)


class AttentionProjector(nn.Module):
    """Cross-attention from learned queries to the student's tokens: token counts may differ.

    Each of the teacher's ``num_tokens`` positions owns a query that gathers what it needs from
    the student's tokens; a linear map widens first.

    Args:
        in_features: Width of the student's tokens.
        out_features: Width of the teacher's tokens, a multiple of ``num_heads``.
        num_tokens: Number of the teacher's tokens.
        num_heads: Heads of the attention.
    """

    def __init__(
        self, in_features: int, out_features: int, num_tokens: int, num_heads: int = 4
    ) -> None:
        super().__init__()
        if out_features % num_heads:
            raise ConfigError(
                f"AttentionProjector: out_features must be a multiple of num_heads={num_heads}, "
                f"got {out_features}"
            )
        self.queries = nn.Embedding(num_tokens, out_features)
        self.widen = nn.Linear(in_features, out_features)
        self.attention = nn.MultiheadAttention(out_features, num_heads, batch_first=True)

    def forward(
        self, tokens: Float[Tensor, "batch tokens_s in_features"]
    ) -> Float[Tensor, "batch tokens_t out_features"]:
        """Tokens of the student -> tokens as many and as wide as the teacher's."""
        tokens = self.widen(tokens)
        queries = self.queries.weight.expand(len(tokens), -1, -1)
        return self.attention(queries, tokens, tokens, need_weights=False)[0]


class Resize(nn.Module):
    """Spatial resize of maps [N C H W], explicit where a criterion wants equal sizes.

    Args:
        size: Height and width of the result.
        mode: ``"area"`` averages (shrinking), or any mode of `torch.nn.functional.interpolate`.
    """

    def __init__(self, size: tuple[int, int], mode: str = "area") -> None:
        super().__init__()
        self.size, self.mode = tuple(size), mode

    def forward(
        self, maps: Float[Tensor, "batch channels h_in w_in"]
    ) -> Float[Tensor, "batch channels h_out w_out"]:
        """Resize."""
        return F.interpolate(maps, self.size, mode=self.mode)

    def extra_repr(self) -> str:
        """Size and mode, for ``print``."""
        return f"size={self.size}, mode={self.mode!r}"
