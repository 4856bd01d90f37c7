"""Patches that can be left out of an image, since a network can paint them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from potstill.core import ConfigError, tap

__all__ = ["Quantized", "class_activation", "quantize_pixels"]

Inpaint = Callable[[Tensor, Tensor], Tensor]


class Quantized(NamedTuple):
    """Images without their least important patches.

    Attributes:
        images: With the patches painted again, or black where there is no painter.
        kept: Patches that are stored.
        share: Share of the pixels that is stored.
    """

    images: Float[Tensor, "images channels height width"]
    kept: Bool[Tensor, "images rows columns"]
    share: float


def class_activation(
    network: nn.Module, layer: str, images: Float[Tensor, "images channels height width"]
) -> Float[Tensor, "images height width"]:
    """Where a network looks for the class that it finds: Grad-CAM++, resized to the images.

    Source: Chattopadhay et al., Grad-CAM++, WACV 2018, Eqs. (10) and (19), with the derivatives of
    the exponential of the score.

    Args:
        network: Classifier in eval mode.
        layer: Path of the layer whose activations [images channels h w] are weighted.
        images: As the network expects them.
    """
    with torch.enable_grad(), tap(network, layer) as taps:
        logits = network(images.detach().requires_grad_())
        activation = taps[layer].output
        (slope,) = torch.autograd.grad(logits.amax(1).sum(), activation)
    square, cube = slope.square(), slope**3
    denominator = 2 * square + (activation * cube).sum((2, 3), keepdim=True)
    alpha = torch.where(denominator != 0, square / denominator, 0.0)
    weights = (alpha * slope.relu()).sum((2, 3), keepdim=True)
    found = (weights * activation).sum(1, keepdim=True).relu().detach()
    return F.interpolate(found, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def quantize_pixels(
    images: Float[Tensor, "images channels height width"],
    importance: Float[Tensor, "images height width"],
    *,
    drop: float = 0.2,
    patch: int = 16,
    inpaint: Inpaint | None = None,
) -> Quantized:
    """Drop the least important patches of each image.

    Source: Zhou et al., Dataset Quantization, ICCV 2023, Sec. 3.3.

    Args:
        images: Any values.
        importance: Importance of each pixel, e.g. `class_activation`; summed over each patch.
        drop: Share of the patches to leave out, in [0, 1).
        patch: Side of a patch in pixels; divides height and width.
        inpaint: ``inpaint(images, mask) -> images`` with the mask [images rows columns] true where
            patches are missing; a decoder of masked autoencoders, say. Black (0) without one.

    Raises:
        ConfigError: The patch does not divide the image, a share outside [0, 1), or importance of
            another shape.
    """
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise ConfigError(f"quantize_pixels: patch must divide {height} x {width}, got {patch}")
    if not 0 <= drop < 1:
        raise ConfigError(f"quantize_pixels: drop must be in [0, 1), got {drop}")
    if importance.shape != (len(images), height, width):
        raise ConfigError(
            f"quantize_pixels: importance must be {[len(images), height, width]}, got "
            f"{list(importance.shape)}"
        )
    sums = F.avg_pool2d(importance[:, None], patch)[:, 0]  # [images rows columns]
    order = sums.flatten(1).argsort(dim=1, stable=True)
    missing = torch.zeros_like(order, dtype=torch.bool)
    missing.scatter_(1, order[:, : int(drop * order.shape[1])], True)
    mask = missing.view_as(sums)
    pixels = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    blank = images.masked_fill(pixels, 0.0)
    painted = blank if inpaint is None else torch.where(pixels, inpaint(blank, mask), images)
    return Quantized(painted, ~mask, 1 - float(mask.double().mean()))
