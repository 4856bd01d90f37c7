"""Masking: which patches of an image the encoders see.

A plan holds two index lists per image, the visible and the hidden patches. All images of a batch
keep equally many, so that a batch stays one dense tensor. The same plan is given to student and
teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core import ConfigError, Draws, common_draws

__all__ = ["BlockMasking", "GridMasking", "MaskPlan", "Masking", "RandomMasking", "num_visible"]


class MaskPlan(NamedTuple):
    """Visible and hidden patches of each image; together a permutation of all patches.

    Attributes:
        keep: Indices of visible patches, int64 [B K].
        hidden: Indices of hidden patches, int64 [B L-K], in random order whatever the masking, so
            that the first m of them are a random subset.
    """

    keep: Tensor
    hidden: Tensor

    @property
    def mask(self) -> Tensor:
        """1 where a patch is hidden, 0 where it is visible: float32 [B L]."""
        length = self.keep.shape[1] + self.hidden.shape[1]
        mask = torch.zeros(len(self.keep), length, device=self.keep.device)
        return mask.scatter_(1, self.hidden, 1.0)

    @property
    def restore(self) -> Tensor:
        """The inverse permutation of ``cat(keep, hidden)``: int64 [B L]."""
        return torch.argsort(torch.cat((self.keep, self.hidden), dim=1), dim=1)


Masking = Callable[..., MaskPlan]
"""``(batch, grid, device=None, generator=None) -> MaskPlan`` with ``grid = (rows, columns)``."""


def num_visible(num_patches: int, ratio: float) -> int:
    """How many of ``num_patches`` stay visible at masking ratio ``ratio``: the floor, exactly.

    ``int(100 * (1 - 0.9))`` is 9 in floating point; here it is 10.

    Raises:
        ConfigError: The ratio is outside [0, 1), or no patch would stay visible.

    Example:
        >>> [num_visible(196, ratio) for ratio in (0.0, 0.75, 0.9, 0.95, 0.98)]
        [196, 49, 19, 9, 3]
    """
    if not 0.0 <= ratio < 1.0:
        raise ConfigError(
            f"num_visible: ratio must be in [0, 1), got {ratio}; it is the share of hidden patches"
        )
    visible = math.floor(num_patches * (1.0 - ratio) + 1e-6)
    if visible < 1:
        raise ConfigError(
            f"num_visible: ratio must leave at least one of {num_patches} patches visible, got "
            f"{ratio}; lower it to at most {1 - 1 / num_patches:.4g}"
        )
    return visible


class _Masking:
    """Hides the patches with the highest score; sub-classes say what the scores are.

    Args:
        ratio: Share of hidden patches, in [0, 1).
    """

    def __init__(self, ratio: float = 0.75) -> None:
        if not 0.0 <= ratio < 1.0:
            raise ConfigError(
                f"{type(self).__name__}: ratio must be in [0, 1), got {ratio}; "
                "it is the share of hidden patches"
            )
        self.ratio = ratio

    def scores(self, shape: tuple[int, int, int], random: Callable[..., Tensor]) -> Tensor:
        """Scores [B rows columns]; ``random(*shape)`` draws uniform numbers."""
        raise NotImplementedError

    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> MaskPlan:
        """Draw a plan.

        Args:
            batch: Number of images.
            grid: Rows and columns of patches.
            device: Device of the indices.
            generator: Source of randomness; without it `common_draws`, so that the mask of an
                image does not depend on how many processes there are.

        Raises:
            ConfigError: No patch would stay visible.
        """
        draws = common_draws(device or "cpu") if generator is None else Draws(generator)

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, device=device, generator=draws.generator)

        visible = num_visible(grid[0] * grid[1], self.ratio)
        order = self.scores((draws.world * batch, *grid), random).flatten(1).argsort(dim=1)
        keep, hidden = order[:, :visible], order[:, visible:]
        shuffle = random(*hidden.shape).argsort(dim=1)
        return MaskPlan(keep[draws.mine], hidden.gather(1, shuffle)[draws.mine])

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class RandomMasking(_Masking):
    """Each patch is hidden with equal chance.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, section 3.

    Example:
        >>> plan = RandomMasking(0.75)(batch=2, grid=(14, 14))
        >>> plan.keep.shape, plan.hidden.shape
        (torch.Size([2, 49]), torch.Size([2, 147]))
    """

    def scores(self, shape: tuple[int, int, int], random: Callable[..., Tensor]) -> Tensor:
        """Independent uniform numbers."""
        return random(*shape)


class BlockMasking(_Masking):
    """Whole blocks of ``side x side`` patches are hidden; the block grid is shifted per image.

    The last block to go is hidden in part, so that the number of visible patches is exact.

    Source: the mask units of Xie et al., SimMIM, CVPR 2022, section 3.2.

    Args:
        ratio: Share of hidden patches, in [0, 1).
        side: Patches on the side of a block.

    Raises:
        ConfigError: ``side`` is below 1.
    """

    def __init__(self, ratio: float = 0.75, side: int = 2) -> None:
        super().__init__(ratio)
        if side < 1:
            raise ConfigError(f"BlockMasking: side must be at least 1, got {side}")
        self.side = side

    def scores(self, shape: tuple[int, int, int], random: Callable[..., Tensor]) -> Tensor:
        """One number per block, and a far smaller one per patch to order the last block."""
        batch, rows, columns = shape
        block_rows, block_columns = rows // self.side + 2, columns // self.side + 2
        per_block = random(batch, block_rows * block_columns).argsort(1).argsort(1)
        shift = (random(2, batch, 1) * self.side).long()  # [2 B 1]
        row = (torch.arange(rows, device=shift.device) + shift[0]) // self.side  # [B rows]
        column = (torch.arange(columns, device=shift.device) + shift[1]) // self.side
        block = (row[:, :, None] * block_columns + column[:, None, :]).flatten(1)
        return per_block.gather(1, block).view(shape) + 0.5 * random(*shape)


class GridMasking(_Masking):
    """Visible patches lie on a regular lattice, as evenly as the ratio allows, shifted per image.

    At 3/4 one patch of each 2 x 2 cell is visible, at 1/2 a checkerboard; other ratios fill the
    lattice in between, in the order of a Bayer matrix.

    Source: grid-wise sampling of He et al., CVPR 2022, Fig. 6; the order is that of Bayer, An
    optimum method for two-level rendition of continuous-tone pictures, ICC 1973.
    """

    def scores(self, shape: tuple[int, int, int], random: Callable[..., Tensor]) -> Tensor:
        """Ranks of a Bayer matrix under a random shift; ties are broken at random."""
        batch, rows, columns = shape
        bayer = _bayer(max(rows, columns).bit_length()).to(random(0).device)
        shift = (random(2, batch, 1) * len(bayer)).long()
        row = (torch.arange(rows, device=shift.device) + shift[0]) % len(bayer)  # [B rows]
        column = (torch.arange(columns, device=shift.device) + shift[1]) % len(bayer)
        return bayer[row[:, :, None], column[:, None, :]] + 0.5 * random(*shape)


def _bayer(levels: int) -> Tensor:
    """The ranks 0 ... 4^levels - 1 of ordered dithering: float32 [2^levels 2^levels]."""
    ranks = torch.zeros(1, 1)
    cell = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    for _ in range(levels):
        ranks = (4 * ranks).repeat(2, 2) + cell.repeat_interleave(len(ranks), 0).repeat_interleave(
            len(ranks), 1
        )
    return ranks
