"""The decoder that paints hidden patches: light, partial, or not there at all."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from potstill.core import ConfigError
from potstill.mae.models.masking import MaskPlan
from potstill.mae.models.patches import sincos_positions

__all__ = ["PatchDecoder"]


class PatchDecoder(nn.Module):
    """Predicts the pixels of hidden patches from the tokens of visible ones.

    A small student behind the stock decoder of 8 blocks spends most of its step here, so depth and
    width are free and ``share`` decodes a random part of the hidden patches only: their mask
    tokens join the visible tokens, the others do not exist.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, section 3.

    Args:
        in_width: Channels of the encoder's tokens.
        grid: Rows and columns of patches.
        patch_values: Values of a patch, height * width * channels.
        num_prefix_tokens: Prefix tokens that the encoder passes on.
        depth: Number of blocks.
        width: Channels inside; divisible by 4 and by ``heads``.
        heads: Attention heads; ``width // 32`` when 0, as in the published decoder.
        share: Share of the hidden patches that is decoded, in (0, 1].

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> from potstill.mae import RandomMasking
        >>> decoder = PatchDecoder(64, grid=(4, 4), patch_values=192, depth=1, width=32, share=0.5)
        >>> plan = RandomMasking(0.75)(2, (4, 4))
        >>> decoder(torch.zeros(2, 1 + 4, 64), plan).shape  # 6 of 12 hidden patches
        torch.Size([2, 6, 192])
    """

    def __init__(
        self,
        in_width: int,
        grid: tuple[int, int],
        patch_values: int,
        *,
        num_prefix_tokens: int = 1,
        depth: int = 2,
        width: int = 512,
        heads: int = 0,
        share: float = 1.0,
    ) -> None:
        super().__init__()
        heads = heads or max(width // 32, 1)
        if depth < 1:
            raise ConfigError(
                f"PatchDecoder: depth must be at least 1, got {depth}; leave the decoder out to "
                "align features only"
            )
        if width % heads or width % 4:
            raise ConfigError(
                f"PatchDecoder: width must be divisible by 4 and by {heads} heads, got {width}"
            )
        if not 0.0 < share <= 1.0:
            raise ConfigError(
                f"PatchDecoder: share must be in (0, 1], got {share}; "
                "it is the share of hidden patches that is decoded"
            )
        self.share = share
        self.num_prefix_tokens = num_prefix_tokens
        self.embed = nn.Linear(in_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(grid, width, prefix=1))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patch_values)
        self.apply(_initialize)
        nn.init.normal_(self.mask_token, std=0.02)

    def num_decoded(self, num_hidden: int) -> int:
        """How many of ``num_hidden`` patches are decoded, at least one."""
        return max(round(self.share * num_hidden), 1)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], plan: MaskPlan, everything: bool = False
    ) -> Float[Tensor, "batch decoded values"]:
        """Predict the patches ``plan.hidden[:, :m]``.

        Attention does not care for order, so that nothing is shuffled back: each token gets the
        position of its patch.

        Args:
            tokens: The encoder's output [B prefix+K D].
            plan: The masking that the encoder saw.
            everything: Decode all hidden patches whatever ``share`` (for pictures).

        Returns:
            [B m P] predicted pixel values, in the order of ``plan.hidden``.
        """
        total = plan.hidden.shape[1]
        asked = plan.hidden[:, : total if everything else self.num_decoded(total)]
        prefix, seen = self.embed(tokens).tensor_split((self.num_prefix_tokens,), dim=1)
        # [1 + L W]: row 0, all zeros in official checkpoints, belongs to the prefix tokens.
        table = self.positions[0]
        x = torch.cat(
            (
                prefix + table[0],
                seen + table[1:][plan.keep],
                self.mask_token + table[1:][asked],
            ),
            dim=1,
        )
        x = self.blocks(x)
        return self.head(self.norm(x[:, x.shape[1] - asked.shape[1] :]))


def _initialize(module: nn.Module) -> None:
    """Xavier weights and zero biases, as published for masked autoencoders."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
