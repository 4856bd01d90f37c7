"""Images that were normalised for the student, as the teacher knows them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.images.files import Statistics

__all__ = ["Renormalized"]


class Renormalized(nn.Module):
    """A model whose images were normalised with the statistics of another one.

    Args:
        model: Any module; its parts are tapped as ``model.<path>``.
        from_statistics: Mean and standard deviation that the images are normalised with; None
            where they are unknown.
        to_statistics: Mean and standard deviation that ``model`` expects; None where they are
            unknown. Unless both are known and differ, images pass unchanged.

    Example:
        >>> mean0_std1, half = ((0.0,), (1.0,)), ((0.5,), (0.5,))
        >>> Renormalized(nn.Identity(), mean0_std1, half)(torch.ones(1, 1, 1, 2))
        tensor([[[[1., 1.]]]])
    """

    def __init__(
        self,
        model: nn.Module,
        from_statistics: Statistics | None,
        to_statistics: Statistics | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.scale: Tensor | None
        self.shift: Any
        scale = shift = None
        if from_statistics and to_statistics and from_statistics != to_statistics:
            (mean, std), (mean_to, std_to) = (
                tuple(torch.tensor(values, dtype=torch.float64)[:, None, None] for values in one)
                for one in (from_statistics, to_statistics)
            )
            scale, shift = (std / std_to).float(), ((mean - mean_to) / std_to).float()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's output on ``images``, normalised anew."""
        if self.scale is not None:
            images = images * self.scale + self.shift
        return self.model(images, *args, **kwargs)
