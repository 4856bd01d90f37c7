"""Many budgets from one training: subnets of fewer learners and fewer blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from potstill.acm.layers.module import acms, require_acms, restored, set_mode
from potstill.acm.layers.surgery import deacmize
from potstill.core import ConfigError, common_draws, delayed
from potstill.core.schemes import Sandwich

__all__ = ["Shrinking", "Subnet", "delayed", "extract", "subnet"]


class Subnet(NamedTuple):
    """A part of an adaptive model that is a model.

    Attributes:
        width: Learners of every module, at least 1.
        depth: Number of first blocks, at least 1.
    """

    width: int
    depth: int


@contextmanager
def subnet(model: nn.Module, part: Subnet) -> Iterator[nn.Module]:
    """Let ``model`` be its ``part`` inside the block; shared weights, no copies.

    Raises:
        ConfigError: A width or depth that the model does not have, or no ``model.blocks``.
    """
    largest, blocks = _largest(model, "subnet"), cast(nn.Sequential, model.blocks)
    if not 1 <= part.width <= largest.width or not 1 <= part.depth <= largest.depth:
        raise ConfigError(
            f"subnet: width must be from 1 to {largest.width} and depth from 1 to "
            f"{largest.depth}, got {part.width} and {part.depth}"
        )
    with restored(acms(model).values(), "mode"):
        try:
            set_mode(model, part.width)
            model.blocks = nn.Sequential(*list(blocks)[: part.depth])
            yield model
        finally:
            model.blocks = blocks


def extract(model: nn.Module, part: Subnet) -> nn.Module:
    """A dense model of its own that computes what ``part`` of ``model`` does."""
    with subnet(model, part):
        return deacmize(model, part.width)


class Shrinking(Sandwich):
    """Once-for-all training in which subnets wait until the full network is worth learning from.

    See `potstill.core.schemes.Sandwich` for the method and its sources: delayed epsilon-shrinking,
    with in-place distillation from the full network.

    Terms: ``full``, the task of the full network; ``smallest``; ``random``, mean over the random
    subnets. No gate takes part: each budget is a dense network (see `extract`).

    Args:
        student: Adaptive model, from `acmize`, with ``student.blocks``.
        steps: Length of the whole training, of which delay and rise are shares.
        least: The smallest subnet; by default one learner and half of the blocks.
        random: Random subnets a step.
        delay: Delay of `delayed`.
        warmup: Rise of `delayed`.
        temperature: Temperature of the distillation, > 0.

    Raises:
        ConfigError: A smallest subnet that the model does not have, or options out of range.
    """

    def __init__(
        self,
        student: nn.Module,
        steps: int,
        *,
        least: Subnet | None = None,
        random: int = 2,
        delay: float = 0.5,
        warmup: float = 0.1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, steps, random=random, delay=delay, warmup=warmup,
                         temperature=temperature)  # fmt: skip
        self.largest = _largest(student, "Shrinking")
        self.least = least or Subnet(1, max(1, self.largest.depth // 2))
        with subnet(student, self.least):
            pass  # refuses a smallest subnet that is not there

    def run(self, part: Subnet, x: Tensor) -> Tensor:
        """Logits of a subnet."""
        with subnet(self.student, part):
            logits: Tensor = self.student(x)
        return logits

    def draw(self) -> Subnet:
        """Uniform over widths and depths."""
        bounds, stream = zip(self.least, self.largest, strict=True), common_draws().generator
        return Subnet(*(int(torch.randint(a, b + 1, (), generator=stream)) for a, b in bounds))


def _largest(model: nn.Module, caller: str) -> Subnet:
    """The whole model as a subnet.

    Raises:
        ConfigError: Nothing adaptive, or blocks that are elsewhere.
    """
    modules = require_acms(model, caller)
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential):
        raise ConfigError(
            f"subnet: model must have its blocks in model.blocks, got {type(model).__name__}; "
            "timm's VisionTransformer family does"
        )
    return Subnet(min(acm.count for acm in modules.values()), len(blocks))
