"""Inputs and outputs of layers on 8-bit grids, as parts of the layer that a copy takes along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

__all__ = [
    "SIDES",
    "ActivationGrid",
    "Side",
    "activation_grids",
    "release_activations",
    "round_activations",
]

Side = Literal["input", "output"]
SIDES: tuple[Side, ...] = ("input", "output")


class ActivationGrid(nn.Module):
    """Rounds to ``scale * (q - zero)``, q in 0 to 255; 0 is a level, as zero padding needs it.

    The gradient passes inside of the range, and is 0 outside.

    Args:
        low: Smallest value of the range; moved to 0 where it is larger.
        high: Largest value; moved to 0 where it is smaller.

    Example:
        >>> import torch
        >>> grid = ActivationGrid(torch.tensor(-1.0), torch.tensor(1.55))
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


def round_activations(module: nn.Module, side: Side, grid: ActivationGrid) -> None:
    """Have a layer round its first input, or its output, from now on."""
    module.add_module(f"{side}_grid", grid)
    if side == "input":
        module.register_forward_pre_hook(_round_input)
    else:
        module.register_forward_hook(_round_output)


def release_activations(module: nn.Module) -> None:
    """Have a layer take and give its activations as they are again."""
    for side in SIDES:
        module._modules.pop(f"{side}_grid", None)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_round_input, _round_output)]:
            del hooks[key]


def activation_grids(student: nn.Module, side: Side = "input") -> Mapping[str, ActivationGrid]:
    """The grids of a calibrated student's inputs or outputs, by the path of their layer."""
    found = {}
    for path, module in student.named_modules():
        grid = module._modules.get(f"{side}_grid")
        if isinstance(grid, ActivationGrid):
            found[path] = grid
    return found


def _round_input(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hooks name the module's own grid, so that a copy has its own."""
    grid: Any = module._modules["input_grid"]
    return (grid(arguments[0]), *arguments[1:])


def _round_output(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    grid: Any = module._modules["output_grid"]
    rounded: Tensor = grid(output)
    return rounded
