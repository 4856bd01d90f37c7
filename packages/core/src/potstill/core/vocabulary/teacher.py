"""The teacher: a model that is used and never trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Frozen"]


class Frozen(nn.Module):
    """A teacher: in eval mode for ever, without gradients, absent from ``state_dict``.

    The model is held outside the module tree, so that no parameter of it reaches an optimizer,
    a checkpoint or a distributed wrapper; it still follows ``.to(device)``. Its parameters get
    ``requires_grad=False``; its buffers are not written (batch statistics stay as they are).

    Args:
        model: Any module, or another ``Frozen``.

    Example:
        >>> teacher = Frozen(nn.Dropout(0.5)).train()
        >>> teacher(torch.ones(3))
        tensor([1., 1., 1.])
        >>> list(teacher.state_dict())
        []
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        model = model.model if isinstance(model, Frozen) else model
        self._held = (model.eval().requires_grad_(False),)

    @property
    def model(self) -> Any:
        """The wrapped model; tap this one."""
        return self._held[0]

    def train(self, mode: bool = True) -> Frozen:
        """Do nothing: ``distiller.train()`` must not wake the teacher's dropout."""
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        self.model._apply(fn, recurse)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model without recording gradients."""
        with torch.no_grad():
            return self.model(*args, **kwargs)
