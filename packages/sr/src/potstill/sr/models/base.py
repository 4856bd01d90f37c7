"""What all networks of the family have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from potstill.core import ShapeError

__all__ = ["Upscaler"]


class Upscaler(nn.Module):
    """A network that enlarges RGB images in [0, 1].

    Attributes:
        architecture: Its name in weight files.
        stride: Input pixels to a side of a feature pixel.
        margin: Feature pixels that the layers before and after the blocks see to each side.
        scale: Factor of enlargement.
        channels: Width.
        blocks: The blocks of its body.
    """

    architecture: ClassVar[str]
    stride: ClassVar[int] = 1
    margin: ClassVar[int] = 2
    scale: int
    channels: int
    blocks: nn.ModuleList

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make this network again."""
        return {"channels": self.channels, "blocks": len(self.blocks)}

    @property
    def radius(self) -> int:
        """Feature pixels that an output sees to each side, once gates are known."""
        return self.margin + sum(block.radius for block in self.blocks)  # type: ignore[misc]

    def check(self, x: Tensor) -> None:
        """Refuse anything but ``[B 3 H W]`` with sides that the head can halve.

        Raises:
            ShapeError: Another shape.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ShapeError(
                f"{type(self).__name__}: x must be [B, 3, H, W] in [0, 1], got {list(x.shape)}; "
                "permute [H, W, 3] images"
            )
