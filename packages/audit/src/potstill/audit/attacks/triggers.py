"""Triggers of images: changes of the input that a poisoned model answers to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError, ShapeError

__all__ = ["Blend", "Patch", "Trigger", "triggered"]

Trigger = Callable[[Tensor], Tensor]
"""Inputs [items ...] with a trigger in them: a `Patch`, a `Blend`, or any other function."""


@dataclass(frozen=True)
class Patch:
    """A rectangle of one value.

    Args:
        rows: First row and the row after the last.
        columns: First column and the column after the last.
        value: Value of its pixels.

    Example:
        >>> Patch((0, 1), (1, 3))(torch.zeros(1, 1, 2, 3))
        tensor([[[[0., 1., 1.],
                  [0., 0., 0.]]]])
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    value: float = 1.0

    def __call__(self, x: Float[Tensor, "*items height width"]) -> Float[Tensor, "*items h w"]:
        """Images with the rectangle."""
        x = x.clone()
        x[..., slice(*self.rows), slice(*self.columns)] = self.value
        return x


@dataclass(frozen=True)
class Blend:
    """A pattern mixed into the whole image.

    Args:
        pattern: The pattern, [channels height width].
        alpha: Share of the pattern.
    """

    pattern: Tensor
    alpha: float = 0.25

    def __call__(self, x: Tensor) -> Tensor:
        """Images with the pattern in them."""
        return torch.lerp(x, self.pattern.to(x), self.alpha)


def triggered(
    trigger: Trigger, x: Tensor, bounds: tuple[float, float] | None = (0.0, 1.0)
) -> Tensor:
    """Inputs with the trigger, after a check that it is one.

    Args:
        trigger: The trigger.
        x: Inputs, [items ...].
        bounds: Lowest and highest value of an input; None checks none (normalised inputs).

    Raises:
        ShapeError: The trigger changes shape or dtype.
        ConfigError: Inputs or triggered inputs outside ``bounds``, or a trigger that changes
            nothing: its success would be the error rate without it, and look like safety.
    """
    changed = trigger(x)
    if changed.shape != x.shape or changed.dtype != x.dtype:
        raise ShapeError(
            f"trigger: result must be {list(x.shape)} {x.dtype} like its input, got "
            f"{list(changed.shape)} {changed.dtype}"
        )
    if torch.equal(changed, x):
        raise ConfigError(
            "trigger: it must change the input, got the same values; its success would be the "
            "error rate without it"
        )
    if bounds is None:
        return changed
    for name, values in (("x", x), ("trigger", changed)):
        low, high = (float(value) for value in values.aminmax())
        if low < bounds[0] or high > bounds[1]:
            raise ConfigError(
                f"{name}: values must be in [{bounds[0]:g}, {bounds[1]:g}], got "
                f"[{low:g}, {high:g}]; pass bounds= where inputs are not pixels in [0, 1]"
            )
    return changed
