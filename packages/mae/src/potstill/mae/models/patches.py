"""Images as sequences of patches, and the fixed position table of masked autoencoders."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor

from potstill.core import ConfigError, ShapeError

__all__ = ["denormalize_patches", "normalize_patches", "patchify", "sincos_positions", "unpatchify"]

_EPS = 1e-6


def patchify(
    images: Float[Tensor, "batch channels height width"], patch: tuple[int, int]
) -> Float[Tensor, "batch patches values"]:
    """Cut images into patches, channels fastest.

    Args:
        images: [B C H W].
        patch: Height and width of a patch in pixels.

    Returns:
        [B L P] with L = H/h * W/w patches row by row and P = h * w * C values ``(y, x, channel)``.

    Raises:
        ShapeError: The image is not divisible into patches.

    Example:
        >>> patchify(torch.zeros(1, 3, 32, 32), (8, 8)).shape
        torch.Size([1, 16, 192])
    """
    if images.ndim != 4 or images.shape[2] % patch[0] or images.shape[3] % patch[1]:
        raise ShapeError(
            f"patchify: images must be [B C H W] with H and W divisible by the patch {patch}, got "
            f"{list(images.shape)}; resize or crop them"
        )
    batch, channels, height, width = images.shape
    rows, columns = height // patch[0], width // patch[1]
    cut = images.reshape(batch, channels, rows, patch[0], columns, patch[1])
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(
    patches: Float[Tensor, "batch patches values"], grid: tuple[int, int], patch: tuple[int, int]
) -> Float[Tensor, "batch channels height width"]:
    """Inverse of :func:`patchify`: [B L P] to [B C H W].

    Raises:
        ShapeError: The number or the size of the patches does not fit ``grid`` and ``patch``.
    """
    rows, columns = grid
    if patches.shape[1] != rows * columns or patches.shape[2] % (patch[0] * patch[1]):
        raise ShapeError(
            f"unpatchify: patches must be [B {rows * columns} C*{patch[0] * patch[1]}], got "
            f"{list(patches.shape)}"
        )
    cut = patches.reshape(len(patches), rows, columns, *patch, -1).permute(0, 5, 1, 3, 2, 4)
    return cut.reshape(len(patches), -1, rows * patch[0], columns * patch[1])


def normalize_patches(
    patches: Float[Tensor, "batch patches values"],
) -> Float[Tensor, "batch patches values"]:
    """Give each patch mean 0 and variance 1 (unbiased, plus 1e-6): [B L P].

    Source: He et al., CVPR 2022, section 3, "reconstruction target".
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + _EPS).sqrt()


def denormalize_patches(
    predicted: Float[Tensor, "batch patches values"], patches: Float[Tensor, "batch patches values"]
) -> Float[Tensor, "batch patches values"]:
    """Undo :func:`normalize_patches` with the statistics of the true ``patches``: [B L P].

    Without it pictures of a model trained on normalised patches look like noise.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return predicted * (variance + _EPS).sqrt() + mean


def sincos_positions(
    grid: tuple[int, int], width: int, prefix: int = 0
) -> Float[Tensor, "1 tokens width"]:
    """The fixed two-dimensional sine-cosine table, zeros for prefix tokens: [1 prefix+L width].

    Channels are ``sin x, cos x, sin y, cos y``, a quarter each, with frequencies
    ``10000 ** (-i / (width / 4))``: the layout of the official MAE checkpoints.

    Raises:
        ConfigError: ``width`` is not divisible by 4.
    """
    if width % 4:
        raise ConfigError(f"sincos_positions: width must be divisible by 4, got {width}")
    table = build_sincos2d_pos_embed(list(grid), width)  # sin y, sin x, cos y, cos x
    table = table.view(-1, 2, 2, width // 4).transpose(1, 2).flip(1).reshape(1, -1, width)
    return torch.cat((table.new_zeros(1, prefix, width), table), dim=1)
