"""What `fit` changes in a distiller, and gives back."""

from __future__ import annotations

import torch
from torch import nn

from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.teacher import Frozen

__all__ = ["Restore"]


class Restore:
    """What `fit` changes for as long as it runs: objective, turn, flags, device, teachers.

    Args:
        distiller: The distiller, as its user has it.

    Attributes:
        moved: Move modules back to their devices; sharded ones stay.
    """

    moved = True

    def __init__(self, distiller: Distiller) -> None:
        self.distiller, self.objective = distiller, distiller.objective
        self.grads = {n: p.requires_grad for n, p in distiller.named_parameters()}
        self.teachers = [m for m in distiller.modules() if isinstance(m, Frozen)]
        # A shell moves what is below it, so that comes first, and teachers after.
        movable = [teacher.model for teacher in self.teachers if not teacher.spread]
        self.homes = [(m, _device_of(m)) for m in (distiller, *movable)]

    def __enter__(self) -> Restore:
        for teacher in self.teachers:
            teacher.freeze()
        return self

    def __exit__(self, *error: object) -> None:
        self.distiller.objective, self.distiller.turn = self.objective, ""
        for name, parameter in self.distiller.named_parameters():
            parameter.requires_grad_(self.grads.get(name, parameter.requires_grad))
        for module, home in self.homes:
            if self.moved and home is not None:
                module.to(home)
        for teacher in self.teachers:
            teacher.release()


def _device_of(module: nn.Module) -> torch.device | None:
    return next((p.device for p in module.parameters()), None)
