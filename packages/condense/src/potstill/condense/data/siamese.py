"""Differentiable augmentation with the same draw for real and synthetic images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError, nearest

__all__ = ["Draw", "Siamese"]

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


class Draw(NamedTuple):
    """Parameters of an augmentation for each of G groups of images.

    Attributes:
        chosen: Operations that are applied, bool [G operations], in the order of `OPERATIONS`.
        color: Added brightness, and factors of saturation and contrast, [G 3].
        corner: Where the square that is cut out begins, as shares of height and width, [G 2].
        matrix: Where a pixel of the result is taken from, as `affine_grid` has it, [G 2 3].
    """

    chosen: Tensor
    color: Tensor
    corner: Tensor
    matrix: Tensor


@dataclass(frozen=True)
class Siamese:
    """Colour, crop, cutout, flip, scale and rotation, differentiable in the pixels.

    One draw for each group: a class while images are made, so that real and synthetic images are
    seen alike, or each image while a network trains. Flip, scale, rotation and crop are one affine
    map, applied by one `grid_sample`; what comes from outside is 0, the mean of normalised images.

    Source: Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation,
    ICML 2021, Sec. 3. Ranges and the one operation at a time are those of the authors' code. Their
    code seeds every draw from the clock; here a draw is that of its generator, and can be repeated.

    Args:
        operations: Names out of `OPERATIONS`; none leaves images as they are.
        single: One random operation at a time, as in the paper; else all of them.

    Raises:
        ConfigError: An unknown operation.

    Example:
        >>> flip = Siamese(("flip",))
        >>> draw = flip.draw(8, torch.Generator().manual_seed(0))
        >>> flip(torch.ones(8, 3, 4, 4), draw).shape
        torch.Size([8, 3, 4, 4])
    """

    operations: tuple[str, ...] = OPERATIONS
    single: bool = True

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in OPERATIONS:
                raise ConfigError(
                    f"Siamese: unknown operation {name!r}; {nearest(name, OPERATIONS)}"
                )

    def draw(
        self,
        groups: int,
        generator: torch.Generator | None = None,
        size: tuple[int, int] = (32, 32),
    ) -> Draw:
        """Parameters for ``groups`` groups.

        Args:
            groups: Number of groups.
            generator: Source of the numbers; torch's global stream by default.
            size: Height and width of the images: a crop moves them by whole pixels.
        """

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(groups, *shape, generator=generator)

        able = torch.tensor([name in self.operations for name in OPERATIONS])
        chosen = able.expand(groups, -1)
        if self.single and self.operations:
            one = torch.randint(len(self.operations), (groups,), generator=generator)
            chosen = F.one_hot(able.nonzero().flatten()[one], len(OPERATIONS)).bool()
        color = torch.cat([uniform(-0.5, 0.5, 1), uniform(0, 2, 1), uniform(0.5, 1.5, 1)], 1)
        sides = torch.tensor(size, dtype=torch.float32)
        reach = (sides / 8 + 0.5).floor()
        shift = ((2 * reach + 1) * uniform(0, 1, 2)).floor() - reach  # rows, columns
        mirrored = uniform(0, 1) < 0.5
        zoom, angle = uniform(1 / 1.2, 1.2, 2), uniform(-15, 15) * math.pi / 180
        corner = ((sides + 1 - (sides / 2).floor() % 2) * uniform(0, 1, 2)).floor() / sides
        return Draw(
            chosen, color, corner, _matrix(chosen, shift / sides, mirrored, zoom, angle, size)
        )

    def __call__(
        self, images: Float[Tensor, "images channels height width"], draw: Draw, each: int = 1
    ) -> Float[Tensor, "images channels height width"]:
        """The images with a draw.

        Args:
            images: Normalised images, group after group.
            draw: From `draw`.
            each: Images of each group.
        """
        if not self.operations:
            return images
        chosen, color, corner, matrix = (
            part.to(images.device).repeat_interleave(each, 0) for part in draw
        )
        if "color" in self.operations:
            images = _coloured(images, chosen[:, 0], color.to(images.dtype))
        if set(self.operations) & {"crop", "flip", "scale", "rotate"}:
            grid = F.affine_grid(matrix.to(images.dtype), list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, align_corners=False)
        if "cutout" in self.operations:
            images = images * _kept(images, chosen[:, 2], corner)
        return images


def _matrix(
    chosen: Tensor, shift: Tensor, mirrored: Tensor, zoom: Tensor, angle: Tensor,
    size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Scale, then rotate, flip and move: [G 2 3] for x and y in [-1, 1]."""
    _, crops, _, flips, scales, rotates = chosen.unbind(1)
    zoom = torch.where(scales[:, None], zoom, 1.0)
    angle = torch.where(rotates, angle, 0.0)
    sign = torch.where(flips & mirrored, -1.0, 1.0)
    shift = torch.where(crops[:, None], 2 * shift, 0.0)
    cosine, sine = angle.cos(), angle.sin()
    tall = size[0] / size[1]  # of a pixel, in units of the grid
    x = torch.stack([sign * cosine / zoom[:, 0], -sign * sine * tall / zoom[:, 0], shift[:, 1]], 1)
    y = torch.stack([sine / tall / zoom[:, 1], cosine / zoom[:, 1], shift[:, 0]], 1)
    return torch.stack([x, y], 1)


def _coloured(images: Tensor, chosen: Tensor, color: Tensor) -> Tensor:
    added, saturation, contrast = (column[:, None, None, None] for column in color.unbind(1))
    found = images + added
    grey = found.mean(1, keepdim=True)
    found = grey + (found - grey) * saturation
    level = found.mean((1, 2, 3), keepdim=True)
    found = level + (found - level) * contrast
    return torch.where(chosen[:, None, None, None], found, images)


def _kept(images: Tensor, chosen: Tensor, corner: Tensor) -> Tensor:
    """0 in a square of half the side around a random place, 1 elsewhere, [images 1 h w]."""
    inside = []
    for axis, length in enumerate(images.shape[-2:]):
        place = torch.arange(length, device=images.device)
        half = length // 2
        start = (corner[:, axis] * length).round()[:, None] - half // 2
        inside.append((place >= start) & (place < start + half))
    rows, columns = inside
    cut = rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]
    return (~cut)[:, None].to(images.dtype)
