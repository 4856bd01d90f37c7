"""Building blocks of the IMDN family: gate, distillation block, bicubic skip."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from potstill.sr.images.resize import cubic

__all__ = ["SLOPE", "BicubicSkip", "Gate", "InformationBlock", "conv3x3", "gate_width", "lrelu"]

SLOPE = 0.05
"""Negative slope of every leaky ReLU in the family."""


def conv3x3(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution with zero padding 1."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU with the family's slope."""
    return F.leaky_relu(x, SLOPE)


def gate_width(channels: int) -> int:
    """Hidden channels of the gate: a sixteenth as published, at least 4 for narrow students."""
    return max(4, channels // 16)


class Gate(nn.Module):
    """Contrast-aware channel attention: a factor in (0, 1) for each channel of an image.

    Source: Hui, Gao, Yang, Wang, "Lightweight Image Super-Resolution with Information
    Multi-distillation Network", ACM MM 2019, Eq. (5) and Fig. 4: ``g = sigmoid(W2 relu(W1 (sd +
    mean) + b1) + b2)`` with mean and population standard deviation over all pixels. These two
    numbers are what makes the network's output depend on every pixel of the image.

    Args:
        channels: Channels of the gated map.
        hidden: Channels between the two 1x1 convolutions.
    """

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or gate_width(channels)
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)

    def forward(
        self, mean: Float[Tensor, "images channels"], variance: Float[Tensor, "images channels"]
    ) -> Float[Tensor, "images channels"]:
        """The factors, from the statistics of a map."""
        # sqrt has no derivative at 0, which a constant image reaches; 1e-12 is below float32 noise.
        contrast = (variance.clamp_min(0) + 1e-12).sqrt() if self.training else _root(variance)
        hidden = F.relu(self.down((contrast + mean)[:, :, None, None]))
        return self.up(hidden).sigmoid().flatten(1)


def _root(variance: Tensor) -> Tensor:
    return variance.clamp_min(0).sqrt()


class InformationBlock(nn.Module):
    """Information multi-distillation block: keep a quarter of the channels, refine the rest.

    Source: Hui et al., ACM MM 2019, Eqs. (2) to (4) and Table 1. Three 3x3 convolutions each set
    ``channels / 4`` channels aside; a fourth one without activation makes the last quarter; the
    four quarters are gated, mixed by a 1x1 convolution, and added to the input.

    Args:
        channels: Channels of input and output, a multiple of 4.
        gated: Without it there is no attention (the variant of the AIM 2019 challenge).
    """

    radius = 4
    """Pixels that an output sees to each side, once the gate is known."""

    def __init__(self, channels: int, *, gated: bool = True) -> None:
        super().__init__()
        self.kept = channels // 4
        rest = channels - self.kept
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = conv3x3(rest, channels)
        self.conv3 = conv3x3(rest, channels)
        self.conv4 = conv3x3(rest, self.kept)
        self.gate = Gate(channels) if gated else None
        self.fuse = nn.Conv2d(channels, channels, 1)

    def distill(self, x: Tensor) -> Tensor:
        """The four quarters before the gate: [B C H W] -> [B C H W]."""
        quarters = []
        for conv in (self.conv1, self.conv2, self.conv3):
            y = lrelu(conv(x))
            quarters.append(y[:, : self.kept])
            x = y[:, self.kept :]
        return torch.cat([*quarters, self.conv4(x)], dim=1)

    def forward(
        self, x: Float[Tensor, "images channels h w"], gate: Tensor | None = None
    ) -> Tensor:
        """[B C H W] -> [B C H W]; a given ``gate`` [C] replaces the one from the statistics."""
        z = self.distill(x)
        if gate is not None:
            z = z * gate[:, None, None]
        elif self.gate is not None:
            variance, mean = torch.var_mean(z, dim=(2, 3), correction=0)
            z = z * self.gate(mean, variance)[:, :, None, None]
        return self.fuse(z) + x


class BicubicSkip(nn.Module):
    """Bicubic enlargement (Keys, a = -0.5) by an integer, as a fixed convolution and a shuffle.

    A student that adds its output to this starts from bicubic quality instead of from nothing, and
    it exports and tiles as any convolution does. Edge pixels are repeated outwards.

    Args:
        scale: The factor.

    Example:
        >>> BicubicSkip(2)(torch.ones(1, 3, 2, 5)).shape
        torch.Size([1, 3, 4, 10])
    """

    kernel: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        offsets = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
        taps = torch.arange(-2, 3, dtype=torch.float64)
        weights = torch.from_numpy(cubic((offsets[:, None] - taps).numpy()))  # [s 5]
        kernel = torch.einsum("ai,bj->abij", weights, weights).reshape(scale**2, 1, 5, 5)
        self.register_buffer("kernel", kernel.float().repeat(3, 1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "images 3 h w"]) -> Tensor:
        """[B 3 H W] -> [B 3 sH sW]."""
        # In bfloat16 this sum would lose the low bits of every pixel.
        with torch.autocast(x.device.type, enabled=False):
            x = F.pad(x, (2, 2, 2, 2), mode="replicate")
            return F.pixel_shuffle(F.conv2d(x, self.kernel.to(x.dtype), groups=3), self.scale)

    def extra_repr(self) -> str:
        """The factor, for ``print``."""
        return f"scale={self.scale}, taps={math.isqrt(self.kernel[0].numel())}"
