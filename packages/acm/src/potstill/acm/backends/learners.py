"""Learners: the ordered small networks of a module, as tensors that every backend takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.grad_mode import inference_mode

from potstill.core import ConfigError, nearest

__all__ = ["ACTIVATIONS", "Learners", "activate", "on_device", "split_widths"]


def _quick_gelu(x: Tensor, inplace: bool) -> Tensor:
    return x.mul_(torch.sigmoid(1.702 * x)) if inplace else x * torch.sigmoid(1.702 * x)


def _gelu(approximate: str) -> Callable[[Tensor, bool], Tensor]:
    def apply(x: Tensor, inplace: bool) -> Tensor:
        if inplace:  # half of the time of a large GELU is the allocation of its result
            return torch.ops.aten.gelu_(x, approximate=approximate)
        return F.gelu(x, approximate=approximate)

    return apply


ACTIVATIONS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "gelu": _gelu("none"),
    "gelu_tanh": _gelu("tanh"),
    "quick_gelu": _quick_gelu,
    "relu": lambda x, inplace: F.relu(x, inplace=inplace),
    "silu": lambda x, inplace: F.silu(x, inplace=inplace),
    "sigmoid": lambda x, inplace: x.sigmoid_() if inplace else x.sigmoid(),
    "identity": lambda x, inplace: x,
}
"""Activations of the hidden units by name: functions of (tensor, whether to overwrite it)."""


def activate(hidden: Tensor, name: str, inplace: bool = False) -> Tensor:
    """Apply the activation called ``name``.

    Raises:
        ConfigError: No such activation.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"activate: activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}; "
            f"{nearest(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name](hidden, inplace)


class Learners(NamedTuple):
    """N ordered two-layer networks that share input and output, side by side.

    Learner n (from 1) owns the hidden units ``bounds[n-1]`` to ``bounds[n]``, so the first k
    learners together are the first ``bounds[k]`` rows of ``up``, ``bias`` and ``down``: one dense
    network that is narrower. ``shift`` belongs to the first learner: with no learner the output is
    zero, with all of them it is the dense network's.

    Attributes:
        up: Weights to the hidden units, [hidden in].
        bias: Biases of the hidden units, [hidden].
        down: Weights from the hidden units, [hidden out].
        shift: Bias of the output, [out].
        bounds: First hidden unit of each learner, and the number of all: N + 1 numbers from 0.
        activation: A key of `ACTIVATIONS`.
        lift: Weights of the factor that multiplies an activated hidden unit, [hidden in], where the
            network is gated (SwiGLU and its like).
        offset: Bias of that factor, [hidden].
    """

    up: Float[Tensor, "hidden in"]
    bias: Float[Tensor, " hidden"]
    down: Float[Tensor, "hidden out"]
    shift: Float[Tensor, " out"]
    bounds: tuple[int, ...]
    activation: str = "gelu"
    lift: Float[Tensor, "hidden in"] | None = None
    offset: Float[Tensor, " hidden"] | None = None

    @property
    def total(self) -> int:
        """How many learners there are, N."""
        return len(self.bounds) - 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Hidden units of each learner."""
        return tuple(b - a for a, b in zip(self.bounds[:-1], self.bounds[1:], strict=True))

    @property
    def equal(self) -> bool:
        """Whether all learners have the same width."""
        return len(set(self.widths)) == 1

    def prefix(self, k: int) -> Learners:
        """The first ``k`` learners; views, no copies."""
        return self.between(0, k)

    def only(self, n: int) -> Learners:
        """Learner ``n`` (from 1) alone; views. The shift stays with the first."""
        return self.between(n - 1, n)

    def between(self, first: int, last: int) -> Learners:
        """Learners ``first + 1`` to ``last``, side by side; views. The shift stays with the first.

        Example:
            >>> bounds = split_widths(12, 4)
            >>> all_four = Learners(torch.ones(12, 2), torch.ones(12), torch.ones(12, 2),
            ...                     torch.ones(2), bounds)
            >>> middle = all_four.between(1, 3)
            >>> middle.widths, middle.shift
            ((3, 3), tensor([0., 0.]))
        """
        start, end = self.bounds[first], self.bounds[last]
        return self._replace(
            up=self.up[start:end],
            bias=self.bias[start:end],
            down=self.down[start:end],
            shift=self.shift if first == 0 else torch.zeros_like(self.shift),
            bounds=tuple(bound - start for bound in self.bounds[first : last + 1]),
            lift=None if self.lift is None else self.lift[start:end],
            offset=None if self.offset is None else self.offset[start:end],
        )

    def hidden(self, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows hidden"]:
        """Activations of all hidden units; overwrites nothing that a gradient needs."""
        z = torch.addmm(self.bias, x, self.up.t())
        z = activate(z, self.activation, inplace=not torch.is_grad_enabled())
        if self.lift is None or self.offset is None:
            return z
        return z * torch.addmm(self.offset, x, self.lift.t())

    def __call__(self, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """The sum of all learners: two matrix products."""
        return torch.addmm(self.shift, self.hidden(x), self.down)


def on_device(values: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A few numbers as a tensor, copied once: a copy in every call would make the host wait."""
    if torch.compiler.is_compiling():  # a constant of the graph
        return torch.tensor(values, device=device, dtype=dtype)
    return _kept(values, device, dtype)


@cache
def _kept(values: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with inference_mode(False):  # of use to gradients too
        return torch.tensor(values, device=device, dtype=dtype)


def split_widths(hidden: int, count: int) -> tuple[int, ...]:
    """Bounds of ``count`` learners over ``hidden`` units; the last takes the remainder.

    Raises:
        ConfigError: Fewer than one learner, or more learners than units.

    Example:
        >>> split_widths(10, 4)
        (0, 2, 4, 6, 10)
    """
    if count < 1:
        raise ConfigError(f"acmize: learners must be at least 1, got {count}; 4 is published")
    if hidden < count:
        raise ConfigError(
            f"acmize: learners must be at most the {hidden} hidden units, got {count}; use fewer"
        )
    width = hidden // count
    return (*range(0, width * count, width), hidden)
