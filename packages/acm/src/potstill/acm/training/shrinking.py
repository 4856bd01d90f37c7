"""Many budgets from one training: subnets of fewer learners and fewer blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.acm.layers.module import acms, require_acms, restored, set_mode
from potstill.acm.layers.surgery import deacmize
from potstill.core import ConfigError, Distiller, Losses, Objective, Weight, common_draws, ramp
from potstill.core.criteria import kd

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


def delayed(steps: int, delay: float = 0.5, warmup: float = 0.1) -> Weight:
    """Weight of a subnet: zero for a share ``delay`` of the training, then rising over ``warmup``.

    Args:
        steps: Length of the whole training.
        delay: Share in which the full network trains alone.
        warmup: Share in which the weight rises.

    Raises:
        ConfigError: Shares that are negative or together exceed 1.
    """
    if delay < 0 or warmup < 0 or delay + warmup > 1:
        raise ConfigError(
            f"delayed: delay and warmup must be shares that sum to at most 1, got {delay} and "
            f"{warmup}"
        )
    return ramp(max(1, round(warmup * steps)), 1.0, start=round(delay * steps))


class Shrinking(Distiller):
    """Once-for-all training in which subnets wait until the full network is worth learning from.

    Source: Annavajjala et al., "Delayed epsilon-Shrinking for Faster Once-For-All Training", ECCV
    2024: the full network alone for about half of the training; then the sandwich rule (Yu et al.,
    "BigNAS", ECCV 2020: largest, smallest and some random subnets in each step) with in-place
    distillation from the full network, each subnet's learning rate rising from zero. The constants
    of the rise are not published. It is done here on the weight of the subnet's term, which scales
    its gradient: the same thing under SGD, and its share of the update under Adam.

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
        super().__init__(student, _terms_of(steps, random, delay, warmup, temperature))
        self.largest = _largest(student, "Shrinking")
        self.least = least or Subnet(1, max(1, self.largest.depth // 2))
        with subnet(student, self.least):
            pass  # refuses a smallest subnet that is not there
        self.random = random

    def forward(self, batch: Any, step: int) -> Losses:
        """Terms of a batch (images, labels)."""
        images, labels = batch
        full = self._run(self.largest, images)
        terms: dict[str, tuple[Any, ...]] = {"full": (full, labels)}
        if "smallest" in self.objective.at(step):
            terms["smallest"] = ([self._run(self.least, images)], full)
        if "random" in self.objective.at(step):
            parts = [_between(self.least, self.largest) for _ in range(self.random)]
            terms["random"] = ([self._run(part, images) for part in parts], full)
        return self.objective(step, terms)

    def _run(self, part: Subnet, images: Tensor) -> Tensor:
        with subnet(self.student, part):
            logits: Tensor = self.student(images)
        return logits


def _terms_of(
    steps: int, random: int, delay: float, warmup: float, temperature: float
) -> Objective:
    if steps < 1 or random < 0 or not temperature > 0:
        raise ConfigError(
            f"Shrinking: steps, random and temperature must be positive, got {steps}, {random} and "
            f"{temperature}"
        )
    subnets = (delayed(steps, delay, warmup), partial(_distance, temperature=temperature))
    names = ["smallest", "random"] if random else ["smallest"]
    return Objective({"full": (1.0, F.cross_entropy), **dict.fromkeys(names, subnets)})


def _distance(outputs: Sequence[Tensor], teacher: Tensor, temperature: float) -> Tensor:
    """Distillation loss, mean over several subnets."""
    return torch.stack([kd(output, teacher, T=temperature) for output in outputs]).mean()


def _between(least: Subnet, largest: Subnet) -> Subnet:
    """Uniform over widths and depths, the same in all processes of a step."""
    bounds, stream = zip(least, largest, strict=True), common_draws().generator
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
