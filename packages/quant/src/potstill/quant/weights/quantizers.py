"""Quantizers of a weight, as parametrizations: full-precision weights in, rounded ones out."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from potstill.core import ConfigError
from potstill.quant.weights.grid import Grid
from potstill.quant.weights.rounding import (
    buckets,
    dual_binarize,
    learned_step,
    quantize_to_levels,
    uniform_quantize,
)

__all__ = ["Buckets", "DualBinary", "LearnedLevels", "LearnedStep", "Quantizer"]


class Codes(NamedTuple):
    """Rounded weights as a file holds them.

    Attributes:
        codes: A small integer for each weight, in its shape.
        scales: What else their values need, by name.
    """

    codes: Tensor
    scales: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """A module from weights to rounded weights that knows what it costs to store them.

    Args:
        w: Weights that it starts from.
        grid: Number of bits, and which weights share a scale.
        start: How its scales are found, as in `Grid.scale`.
    """

    order: tuple[str, ...] = ()  # of the parameters that the module had
    norms: tuple[nn.Module, ...] = ()  # batch norms of the student

    def __init__(self, w: Tensor, grid: Grid, start: str = "mse") -> None:
        super().__init__()
        self.grid = grid
        self.register_forward_pre_hook(_warn_of_norms)

    @abstractmethod
    def forward(self, w: Tensor) -> Tensor:
        """Rounded weights, in the shape of ``w``."""

    @abstractmethod
    def encode(self, w: Tensor) -> Codes:
        """What a file holds: a code in 0 to ``2^bits - 1`` for each weight, and the scales."""

    @staticmethod
    @abstractmethod
    def decode(grid: Grid, codes: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
        """The values of ``codes``: what `forward` gives, bit for bit."""

    def bytes(self, w: Tensor) -> int:
        """Bytes of the weights when packed, with their scales."""
        _, scales = self.encode(w.detach())
        return -(-w.numel() * self.grid.stored // 8) + sum(s.nbytes for s in scales.values())


def _warn_of_norms(quantizer: Any, arguments: tuple[Any, ...]) -> None:
    """Say where statistics of batch norms move although no weight does."""
    if not quantizer.norms or arguments[0].requires_grad or not torch.is_grad_enabled():
        return
    trains = any(parameter.requires_grad for parameter in quantizer.parameters())
    if trains and any(norm.training for norm in quantizer.norms):
        warnings.warn(
            f"{type(quantizer).__name__}: batch norm is in train mode while the weights are frozen "
            "and their levels train, so its running statistics move; call eval() on batch norms",
            stacklevel=2,
        )


class LearnedStep(Quantizer):
    """A learned step for each row: `learned_step`, started at the post-training scale.

    The gradient of a scale is divided by ``sqrt(inputs * high)``, as published; the published
    start, twice the mean magnitude, is further from the weights than the one taken here.
    """

    def __init__(self, w: Tensor, grid: Grid, start: str = "mse") -> None:
        super().__init__(w, grid, start)
        rows = grid.rows(w.detach())
        self.scale = nn.Parameter(grid.scale(rows, start))  # type: ignore[arg-type]
        self.factor = 1 / math.sqrt(rows.shape[1] * max(grid.high, 1))

    def forward(self, w: Tensor) -> Tensor:
        """Rounded weights."""
        grid = self.grid
        scale: Tensor = self.scale
        if scale.requires_grad and torch.is_grad_enabled():
            scale = scale.detach() + self.factor * (scale - scale.detach())
        rounded = learned_step(grid.rows(w), scale, grid.low, grid.high, grid.offset)
        return grid.shaped(rounded, w)

    def integers(self, rows: Tensor) -> Tensor:
        """The integer of each weight, [rows inputs]."""
        return self.grid.integers(rows, self.scale)

    @torch.no_grad()
    def encode(self, w: Tensor) -> Codes:
        """Integers from 0 on, and the scale of each row."""
        codes = self.integers(self.grid.rows(w)) - self.grid.low
        return Codes(self.grid.shaped(codes, w).to(torch.uint8), {"scale": self.scale.detach()})

    @staticmethod
    def decode(grid: Grid, codes: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
        """The values of ``codes``."""
        integers = grid.rows(codes.to(scales["scale"].dtype) + grid.low)
        return grid.shaped(grid.values(integers, scales["scale"]), codes)


class Buckets(Quantizer):
    """Equally spaced levels between the extremes of buckets: `uniform_quantize`.

    The paper's buckets run over the flattened tensor, 256 weights each; no runtime knows them.
    """

    def __init__(self, w: Tensor, grid: Grid, start: str = "mse") -> None:
        super().__init__(w, Grid(grid.bits, None, grid.block or 256, "midrise"), start)

    def forward(self, w: Tensor) -> Tensor:
        """Rounded weights."""
        return uniform_quantize(w, 2**self.grid.bits, bucket_size=self.grid.block)

    @torch.no_grad()
    def encode(self, w: Tensor) -> Codes:
        """Steps above the least weight of the bucket, and that weight and the range."""
        rows, least, width = buckets(w, self.grid.block)
        codes = ((rows - least) / width * (2**self.grid.bits - 1)).round()
        codes = codes.to(torch.uint8).reshape(-1)[: w.numel()].reshape(w.shape)
        return Codes(codes, {"least": least, "width": width})

    @staticmethod
    def decode(grid: Grid, codes: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
        """The values of ``codes``."""
        least, width = scales["least"], scales["width"]
        rows = grid.rows(codes.to(least.dtype))
        return grid.shaped(rows / (2**grid.bits - 1) * width + least, codes)


class LearnedLevels(Quantizer):
    """Learned levels in the range of the tensor: `quantize_to_levels`, by default with the weights.

    An optimizer may put levels into any order and beyond the range: they are sorted and clamped to
    [0, 1] at each use, which changes no level's gradient inside. They start at the quantiles of the
    weights, and are then moved to the means of their cells ten times (k-means). The published
    method freezes the weights: train with ``Stage(trainable=["*.levels"])``.
    """

    def __init__(self, w: Tensor, grid: Grid, start: str = "mse") -> None:
        super().__init__(w, Grid(grid.bits, None, None, grid.form), start)
        if grid.bits > 8:
            raise ConfigError(f"LearnedLevels: bits must be at most 8, got {grid.bits}")
        flat = w.detach().reshape(-1)
        width = flat.amax() - flat.amin()
        x = ((flat - flat.amin()) / width.where(width > 0, 1.0)).sort().values
        count = 2**grid.bits
        at = torch.linspace(0.5 / count, 1 - 0.5 / count, count, device=x.device)
        levels = x[(at * (len(x) - 1)).round().long()]
        for _ in range(10):
            cell = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
            sums = torch.zeros_like(levels).index_add_(0, cell, x)
            sizes = cell.bincount(minlength=count)
            levels = torch.where(sizes > 0, sums / sizes.clamp_min(1), levels).sort().values
        self.levels = nn.Parameter(levels)

    def forward(self, w: Tensor) -> Tensor:
        """Rounded weights; straight through in ``w``."""
        rounded, _ = quantize_to_levels(w, self.levels.clamp(0, 1).sort().values)
        return rounded + (w - w.detach()) if w.requires_grad else rounded

    @torch.no_grad()
    def encode(self, w: Tensor) -> Codes:
        """The level of each weight, and the values of the levels."""
        levels = self.levels.clamp(0, 1).sort().values
        _, index = quantize_to_levels(w, levels)
        _, least, width = buckets(w, None)
        return Codes(index.to(torch.uint8), {"levels": (levels * width + least).reshape(-1)})

    @staticmethod
    def decode(grid: Grid, codes: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
        """The values of ``codes``."""
        return scales["levels"][codes.long()]


class DualBinary(Quantizer):
    """Two scaled binary masks for each row: `dual_binarize`, at 2 bits.

    Scales are ``a2 = -sign e^u`` and ``a1 = sign (e^u + e^v)``, which keeps them in the cone where
    the masks are the nearest ones, whatever an optimizer does to u and v. They start as the 2-bit
    two's complement grid, ``a1 = 2 s`` and ``a2 = -s``, turned around.

    Raises:
        ConfigError: A grid of other than 2 bits.
    """

    scales = 2
    sign: Tensor

    def __init__(self, w: Tensor, grid: Grid, start: str = "mse") -> None:
        if grid.bits != 2:
            raise ConfigError(f"DualBinary: bits must be 2, got {grid.bits}")
        super().__init__(w, Grid(2, grid.axis, grid.block), start)
        step = -self.grid.scale(self.grid.rows(w.detach()), start)  # type: ignore[arg-type]
        self.register_buffer("sign", step.sign())
        self.u, self.v = nn.Parameter(step.abs().log()), nn.Parameter(step.abs().log())

    def scales_of(self) -> tuple[Tensor, Tensor]:
        """Both scales of each row, [rows 1]."""
        return self.sign * (self.u.exp() + self.v.exp()), -self.sign * self.u.exp()

    def forward(self, w: Tensor) -> Tensor:
        """Rounded weights."""
        rounded, _, _ = dual_binarize(self.grid.rows(w), *self.scales_of())
        return self.grid.shaped(rounded, w)

    @torch.no_grad()
    def encode(self, w: Tensor) -> Codes:
        """The first mask, plus twice the second; both scales of each row."""
        first, second = self.scales_of()
        _, b_1, b_2 = dual_binarize(self.grid.rows(w), first, second)
        codes = self.grid.shaped(b_1 + 2 * b_2, w).to(torch.uint8)
        return Codes(codes, {"first": first, "second": second})

    @staticmethod
    def decode(grid: Grid, codes: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
        """The values of ``codes``."""
        first, second = scales["first"], scales["second"]
        rows = grid.rows(codes).to(first.dtype)
        return grid.shaped(first * (rows % 2) + second * (rows >= 2), codes)
