"""IMDN for factors 2, 3 and 4, students of any width and depth, and IMDN_AS for aligned pairs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import ConfigError
from potstill.sr.models.base import Upscaler
from potstill.sr.models.blocks import SLOPE, BicubicSkip, InformationBlock, conv3x3, lrelu

__all__ = ["IMDN", "IMDN_AS"]

GlobalSkip = Literal["bicubic"] | None


class IMDN(Upscaler):
    """Information multi-distillation network: a light network that enlarges photographs.

    Source: Hui, Gao, Yang, Wang, "Lightweight Image Super-Resolution with Information
    Multi-distillation Network", ACM MM 2019, Fig. 2 and Eq. (1). Images are RGB in [0, 1], neither
    centred on the way in nor clamped on the way out. Attention uses statistics of the whole image:
    use ``potstill.sr.upscale`` to enlarge big images in parts without seams.

    Args:
        scale: The factor, an integer from 1; published are 2, 3 and 4.
        channels: Width, a multiple of 4; 64 as published.
        blocks: Depth; 6 as published.
        global_skip: ``"bicubic"`` adds the bicubic enlargement to the output, which a small student
            learns from much faster; None as published.

    Raises:
        ConfigError: An argument out of range.

    Example:
        >>> import torch
        >>> from potstill.core import count_parameters
        >>> count_parameters(IMDN(2))
        694404
        >>> IMDN(3, channels=16, blocks=2, global_skip="bicubic")(torch.rand(1, 3, 5, 7)).shape
        torch.Size([1, 3, 15, 21])
    """

    architecture: ClassVar[str] = "imdn"
    margin: ClassVar[int] = 3

    def __init__(
        self, scale: int, channels: int = 64, blocks: int = 6, global_skip: GlobalSkip = None
    ) -> None:
        super().__init__()
        if not (isinstance(scale, int) and 1 <= scale <= 8):
            raise ConfigError(f"IMDN: scale must be an integer from 1 to 8, got {scale!r}; try 2")
        if channels < 4 or channels % 4:
            raise ConfigError(f"IMDN: channels must be a multiple of 4, got {channels}; try 32")
        if blocks < 1:
            raise ConfigError(f"IMDN: blocks must be at least 1, got {blocks}; published is 6")
        if global_skip not in (None, "bicubic"):
            raise ConfigError(
                f"IMDN: global_skip must be 'bicubic' or None, got {global_skip!r}; None is the "
                "published network"
            )
        self.scale = scale
        self.channels = channels
        self.global_skip = global_skip
        self.head = self._make_head(channels)
        self.blocks = nn.ModuleList(InformationBlock(channels) for _ in range(blocks))
        self.collect = nn.Conv2d(blocks * channels, channels, 1)
        self.body_out = conv3x3(channels, channels)
        self.upsampler = conv3x3(channels, 3 * (scale * self.stride) ** 2)
        self.skip = BicubicSkip(scale) if global_skip else None

    def _make_head(self, channels: int) -> nn.Module:
        return conv3x3(3, channels)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make this network again."""
        return {"scale": self.scale, **super().config, "global_skip": self.global_skip}

    def forward(
        self,
        x: Float[Tensor, "images 3 h w"],
        gates: Float[Tensor, "blocks channels"] | None = None,
    ) -> Float[Tensor, "images 3 H W"]:
        """Enlarge: [B 3 H W] in [0, 1] -> [B 3 sH sW].

        With ``gates``, one row a block, no statistics are taken: what an output sees is then
        bounded by `radius`.
        """
        self.check(x)
        shallow = y = self.head(x)
        collected = None
        # The 1x1 convolution over all blocks' outputs, as a sum: no map of 6 x 64 channels.
        parts = self.collect.weight.split(self.channels, dim=1)
        for k, (block, part) in enumerate(zip(self.blocks, parts, strict=True)):
            y = block(y, None if gates is None else gates[k])
            bias = self.collect.bias if collected is None else None
            term = F.conv2d(y, part, bias)
            collected = term if collected is None else collected + term
        deep = self.body_out(lrelu(collected)) + shallow  # type: ignore[arg-type]
        # Under autocast the last step stays in float32: its rounding would be that of the image.
        with torch.autocast(x.device.type, enabled=False):
            large = self.upsampler(deep.to(self.upsampler.weight.dtype))
        large = F.pixel_shuffle(large, self.scale * self.stride)
        return large if self.skip is None else large + self.skip(x)


class IMDN_AS(IMDN):
    """IMDN for any scale: refines an image that already has its final size.

    Source: Hui et al., ACM MM 2019, section 3.4 and Fig. 5. Two strided convolutions, the body at a
    quarter of the resolution, and enlargement by 4: the output is the input's size, rounded up to
    multiples of 4. Resize to the wanted size first; ``potstill.sr.upscale`` pads and crops.

    Example:
        >>> import torch
        >>> IMDN_AS(channels=16, blocks=1)(torch.rand(1, 3, 31, 33)).shape
        torch.Size([1, 3, 32, 36])
    """

    architecture: ClassVar[str] = "imdn_as"
    stride: ClassVar[int] = 4

    def __init__(self, scale: int = 1, channels: int = 64, blocks: int = 6) -> None:
        if scale != 1:
            raise ConfigError(f"IMDN_AS: scale must be 1, got {scale}; resize the image first")
        super().__init__(1, channels, blocks)

    def _make_head(self, channels: int) -> nn.Module:
        return nn.Sequential(
            conv3x3(3, channels, stride=2),
            nn.LeakyReLU(SLOPE),
            conv3x3(channels, channels, stride=2),
        )

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make this network again."""
        return {"channels": self.channels, "blocks": len(self.blocks)}
