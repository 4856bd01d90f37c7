"""The teacher: a model that is used and never trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Frozen"]


class Frozen(nn.Module):
    """A teacher: in eval mode for ever, without gradients, absent from ``state_dict``.

    The model is held outside the module tree, so that no parameter of it reaches an optimizer,
    a checkpoint or a distributed wrapper; it still follows ``.to(device)``, unless a device map has
    spread it over devices (accelerate's hooks bring inputs there). Its parameters get
    ``requires_grad=False``; its buffers are not written (batch statistics stay as they are).
    `fit` leaves the model as it was before it was frozen.

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
        self._held = (model,)
        self._before: tuple[list[tuple[nn.Parameter, bool]], list[tuple[nn.Module, bool]]] | None
        self._before = None
        self.freeze()

    @property
    def model(self) -> Any:
        """The wrapped model; tap this one."""
        return self._held[0]

    @property
    def spread(self) -> bool:
        """Whether a device map says where the parts of the model are; then they stay there."""
        return getattr(self.model, "hf_device_map", None) is not None

    def freeze(self) -> None:
        """Set eval mode and no gradients; `release` undoes it."""
        if self._before is None:
            parameters = [(p, p.requires_grad) for p in self.model.parameters()]
            self._before = parameters, [(m, m.training) for m in self.model.modules()]
        self.model.eval().requires_grad_(False)

    def release(self) -> None:
        """Give the model back its flags, as they were before it was frozen."""
        parameters, modules = self._before or ((), ())
        for parameter, flag in parameters:
            parameter.requires_grad_(flag)
        for module, training in modules:
            module.training = training
        self._before = None

    def train(self, mode: bool = True) -> Frozen:
        """Do nothing: ``distiller.train()`` must not wake the teacher's dropout."""
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        if not self.spread:
            self.model._apply(fn, recurse)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model without recording gradients."""
        with torch.no_grad():
            return self.model(*args, **kwargs)
