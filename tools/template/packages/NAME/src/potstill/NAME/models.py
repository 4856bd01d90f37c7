"""The network that teaches, and the one that learns."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import Pretrained

__all__ = ["Network"]


class Network(nn.Module, Pretrained):
    """Two linear layers on four numbers.

    Args:
        width: Hidden units.

    Example:
        >>> import torch
        >>> Network(8)(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x: Float[Tensor, "rows 4"]) -> Float[Tensor, "rows 3"]:
        """Outputs of the network."""
        outputs: Tensor = self.layers(x)
        return outputs
