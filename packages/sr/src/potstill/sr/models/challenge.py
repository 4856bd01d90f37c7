"""IMDN_RTC and IMDN_RTE: the small variants of the AIM 2019 challenge, both for factor 2."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import ShapeError
from potstill.sr.models.base import Upscaler
from potstill.sr.models.blocks import InformationBlock, conv3x3

__all__ = ["IMDN_RTC", "IMDN_RTE"]


class IMDN_RTC(Upscaler):
    """The tiny variant: 12 channels, 5 blocks without attention, factor 2, 20,190 parameters.

    Source: the checkpoint ``model_RTC`` of the authors' repository; the constrained track of Zhang
    et al., "AIM 2019 Challenge on Constrained Super-Resolution", ICCV workshops 2019. Without
    attention it sees a bounded neighbourhood, so that tiles of it are exact.

    Example:
        >>> IMDN_RTC()(torch.rand(1, 3, 5, 7)).shape
        torch.Size([1, 3, 10, 14])
    """

    architecture: ClassVar[str] = "imdn_rtc"

    def __init__(self, channels: int = 12, blocks: int = 5) -> None:
        super().__init__()
        self.scale = 2
        self.channels = channels
        self.head = conv3x3(3, channels)
        self.blocks = nn.ModuleList(InformationBlock(channels, gated=False) for _ in range(blocks))
        self.body_out = nn.Conv2d(channels, channels, 1)
        self.upsampler = conv3x3(channels, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge: [B 3 H W] in [0, 1] -> [B 3 2H 2W]."""
        self.check(x)
        shallow = y = self.head(x)
        for block in self.blocks:
            y = block(y)
        return F.pixel_shuffle(self.upsampler(self.body_out(y) + shallow), 2)


class LargeBlock(nn.Module):
    """Six 3x3 convolutions that each set a quarter of the width aside; ReLU, no bias.

    Args:
        channels: Width, a multiple of 4: 20 gives convolutions of 20, 20, 20, 15, 10 and 5 outputs.
    """

    radius = 6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kept = kept = channels // 4
        widths = [channels, channels, channels, 3 * kept, 2 * kept, kept]
        inputs = [channels, *(width - kept for width in widths[:-1])]
        self.convs = nn.ModuleList(map(partial(conv3x3, bias=False), inputs, widths))
        self.fuse = nn.Conv2d(6 * kept, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B C H W] -> [B C H W]."""
        y, kept = x, []
        for conv in self.convs:
            y = F.relu(conv(y))
            kept.append(y[:, : self.kept])
            y = y[:, self.kept :]
        return self.fuse(torch.cat(kept, dim=1)) + x


class IMDN_RTE(Upscaler):
    """The variant for noisy images: works at half the resolution, factor 2, 89,748 parameters.

    Source: the checkpoint ``model_RTE`` of the authors' repository. Height and width must be even:
    the head halves them and the upsampler enlarges by 4.

    Example:
        >>> IMDN_RTE()(torch.rand(1, 3, 6, 8)).shape
        torch.Size([1, 3, 12, 16])
    """

    architecture: ClassVar[str] = "imdn_rte"
    stride: ClassVar[int] = 2

    def __init__(self, channels: int = 20, blocks: int = 6) -> None:
        super().__init__()
        self.scale = 2
        self.channels = channels
        self.head = nn.Sequential(
            conv3x3(3, channels), nn.ReLU(), conv3x3(channels, channels, stride=2, bias=False)
        )
        self.blocks = nn.ModuleList(LargeBlock(channels) for _ in range(blocks))
        self.body_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.upsampler = conv3x3(channels, 48)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge: [B 3 H W] in [0, 1] -> [B 3 2H 2W], H and W even."""
        self.check(x)
        if x.shape[2] % 2 or x.shape[3] % 2:
            raise ShapeError(
                f"IMDN_RTE: x must have even sides, got {list(x.shape[2:])}; pad it, as upscale "
                "does"
            )
        shallow = y = self.head(x)
        for block in self.blocks:
            y = block(y)
        return F.pixel_shuffle(self.upsampler(self.body_out(y) + shallow), 4)
