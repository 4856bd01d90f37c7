"""Students under names of timm: ``timm.create_model("potstill_mae_small_patch16_224")``.

Import ``potstill.mae.registry`` once to register them. Besides the four sizes, ``potstill_mae``
wraps any timm vision transformer:
``create_model("potstill_mae", encoder="deit3_small_patch16_224")``.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model

from potstill.mae.models.autoencoder import MaskedAutoencoder

__all__ = [
    "potstill_mae",
    "potstill_mae_base_patch16_224",
    "potstill_mae_large_patch16_224",
    "potstill_mae_small_patch16_224",
    "potstill_mae_tiny_patch16_224",
]


@register_model
def potstill_mae(pretrained: bool = False, **options: Any) -> MaskedAutoencoder:
    """A masked autoencoder around any timm vision transformer.

    Args:
        pretrained: Start from timm's weights of the encoder.
        **options: ``encoder``, the timm name; ``decoder_depth`` (0 for none), ``decoder_width``,
            ``decoder_share``; all others go to the encoder.
    """
    options.pop("pretrained_cfg", None)  # of the wrapper; the encoder has its own
    options.pop("pretrained_cfg_overlay", None)
    options.pop("cache_dir", None)
    name = options.pop("encoder", "vit_small_patch16_224")
    depth = options.pop("decoder_depth", 2)
    decoder = {
        "depth": depth,
        "width": options.pop("decoder_width", 512),
        "share": options.pop("decoder_share", 1.0),
    }
    vit = timm.create_model(name, pretrained=pretrained, **{"num_classes": 0, **options})
    return MaskedAutoencoder(vit, decoder if depth else None, fixed_positions=not pretrained)


@register_model
def potstill_mae_tiny_patch16_224(pretrained: bool = False, **options: Any) -> MaskedAutoencoder:
    """ViT-Ti with a decoder of 2 blocks."""
    return potstill_mae(pretrained, encoder="vit_tiny_patch16_224", **options)


@register_model
def potstill_mae_small_patch16_224(pretrained: bool = False, **options: Any) -> MaskedAutoencoder:
    """ViT-S with a decoder of 2 blocks."""
    return potstill_mae(pretrained, encoder="vit_small_patch16_224", **options)


@register_model
def potstill_mae_base_patch16_224(pretrained: bool = False, **options: Any) -> MaskedAutoencoder:
    """ViT-B with a decoder of 2 blocks."""
    return potstill_mae(pretrained, encoder="vit_base_patch16_224", **options)


@register_model
def potstill_mae_large_patch16_224(pretrained: bool = False, **options: Any) -> MaskedAutoencoder:
    """ViT-L with a decoder of 2 blocks."""
    return potstill_mae(pretrained, encoder="vit_large_patch16_224", **options)
