"""The student of pre-training: a masked encoder, with or without a decoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.mae.models.decoder import PatchDecoder
from potstill.mae.models.encoder import as_masked
from potstill.mae.models.masking import MaskPlan
from potstill.mae.models.patches import denormalize_patches, patchify, unpatchify

__all__ = ["MaskedAutoencoder"]


class MaskedAutoencoder(nn.Module):
    """A masked encoder and the decoder that paints what it did not see.

    Args:
        vit: A timm vision transformer, or a :class:`MaskedViT`; copied, so it stays as it is.
        decoder: Options of :class:`PatchDecoder` (depth, width, heads, share), or None for no
            decoder: then features are aligned only.
        fixed_positions: Put the fixed sine-cosine table in the place of learned positions, as
            published for encoders that begin untrained.

    Example:
        >>> import timm
        >>> from potstill.mae import RandomMasking
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)
        >>> student = MaskedAutoencoder(vit, decoder={"depth": 1, "width": 64})
        >>> student(torch.zeros(2, 3, 64, 64), RandomMasking(0.75)(2, (4, 4))).shape
        torch.Size([2, 12, 768])
        >>> type(student.export_student()).__name__
        'VisionTransformer'
    """

    def __init__(
        self,
        vit: nn.Module,
        decoder: dict[str, Any] | None = None,
        *,
        fixed_positions: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = as_masked(copy.deepcopy(vit))
        if fixed_positions:
            self.encoder.fix_positions()
        for module in self.encoder.unreached():
            module.requires_grad_(False)
        self.decoder = None
        if decoder is not None:
            patch = self.encoder.patch_size
            self.decoder = PatchDecoder(
                self.encoder.width,
                self.encoder.grid,
                patch[0] * patch[1] * self.encoder.in_chans,
                num_prefix_tokens=self.encoder.num_prefix_tokens,
                **decoder,
            )

    def forward(
        self, images: Float[Tensor, "batch channels height width"], plan: MaskPlan
    ) -> Float[Tensor, "batch decoded values"] | None:
        """Predicted pixels of the decoded hidden patches [B m P]; None without a decoder."""
        tokens = self.encoder(images, plan)
        return None if self.decoder is None else self.decoder(tokens, plan)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Float[Tensor, "batch channels height width"],
        plan: MaskPlan,
        normalized: bool = False,
    ) -> Float[Tensor, "batch channels height width"]:
        """Images whose hidden patches are painted by the decoder, visible ones as they are.

        Args:
            images: [B C H W], normalised as for training.
            plan: The masking.
            normalized: True for a decoder trained on normalised patches; their statistics
                are then taken from ``images``.
        """
        if self.decoder is None:
            raise RuntimeError("MaskedAutoencoder.reconstruct: this student has no decoder")
        painted = self.decoder(self.encoder(images, plan), plan, everything=True)
        patches = patchify(images, self.encoder.patch_size)
        index = plan.hidden[:, :, None].expand(-1, -1, patches.shape[2])
        if normalized:
            painted = denormalize_patches(painted, patches.gather(1, index))
        pasted = patches.scatter(1, index, painted.to(patches.dtype))
        return unpatchify(pasted, self.encoder.grid, self.encoder.patch_size)

    def export_student(self) -> Any:
        """A copy of the encoder as a plain timm model, all of it trainable."""
        return copy.deepcopy(self.encoder.vit).requires_grad_(True)
