"""Inputs of layers on an 8-bit grid, as a part of the layer that a copy takes along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["InputGrid", "input_grids", "round_inputs", "take_inputs"]

_NAME = "input_grid"


class InputGrid(nn.Module):
    """Rounds to ``scale * (q - zero)``, q in 0 to 255; 0 is a level, as zero padding needs it.

    The gradient passes inside of the range, and is 0 outside.

    Args:
        low: Smallest value of the range; moved to 0 where it is larger.
        high: Largest value; moved to 0 where it is smaller.

    Example:
        >>> import torch
        >>> grid = InputGrid(torch.tensor(-1.0), torch.tensor(1.55))
        >>> grid.zero.item(), grid(torch.tensor([-2.0, 0.0, 0.014]))
        (100.0, tensor([-1.0000,  0.0000,  0.0100]))
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = (high - low) / 255
        scale = scale.where(scale > 0, 1.0)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", (-low / scale).round())

    def forward(self, x: Tensor) -> Tensor:
        """Rounded values."""
        inside = x.clamp(-self.zero * self.scale, (255 - self.zero) * self.scale)
        level = (inside.detach() / self.scale).round() * self.scale
        return level + (inside - inside.detach()) if inside.requires_grad else level


def round_inputs(module: nn.Module, grid: InputGrid) -> None:
    """Have a layer round its first input from now on."""
    module.add_module(_NAME, grid)
    module.register_forward_pre_hook(_round)


def take_inputs(module: nn.Module) -> None:
    """Have a layer take its inputs as they are again."""
    del module._modules[_NAME]
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _round:
            del module._forward_pre_hooks[key]


def input_grids(student: nn.Module) -> Mapping[str, InputGrid]:
    """The grids of a calibrated student, by the path of their layer."""
    found = {}
    for path, module in student.named_modules():
        grid = module._modules.get(_NAME)
        if isinstance(grid, InputGrid):
            found[path] = grid
    return found


def _round(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The hook: it names the module's own grid, so that a copy has its own."""
    grid: Any = module._modules[_NAME]
    return (grid(arguments[0]), *arguments[1:])
