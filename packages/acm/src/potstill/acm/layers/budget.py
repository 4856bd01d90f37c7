"""What a gated model costs: in multiply-adds, statically and for each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.acm.layers.module import GateReading, record_gates, require_acms, restored, set_mode
from potstill.core import ConfigError, count_macs

__all__ = ["Costs", "costs", "evaluation", "reachable", "share", "spent"]


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of an adaptive model for one image.

    Attributes:
        fixed: Parts that do not adapt: patch embedding, attention, head.
        gates: All gates.
        learners: All learners on all tokens: what the budget is a share of.
    """

    fixed: int
    gates: int
    learners: int

    @property
    def dense(self) -> int:
        """Without gates, at full budget: the dense model, when ``flops_factor`` was 1."""
        return self.fixed + self.learners

    def at(self, budget: float) -> float:
        """The whole model at a mean budget, a share of ``learners``."""
        return self.fixed + self.gates + budget * self.learners


def costs(model: nn.Module, *inputs: Any) -> Costs:
    """Count what one image costs, part by part.

    The fixed part is counted by torch's counter over a forward at full budget; see `count_macs` for
    what that leaves out.

    Args:
        model: Adaptive model; its modes are put back.
        *inputs: A batch of one image, on any device.

    Raises:
        ConfigError: Nothing in the model is adaptive.
    """
    modules = require_acms(model, "costs")
    with restored(modules.values(), "mode"), record_gates(set_mode(model, 1.0)) as readings:
        total = count_macs(model, *(images_for(model, value) for value in inputs))
    tokens = {name: reading.choices.numel() for name, reading in readings.items()}
    learners = sum(n * modules[name].costs[-1] for name, n in tokens.items())
    gates = sum(n * modules[name].gate_cost for name, n in tokens.items())
    return Costs(total - learners, gates, learners)


def spent(readings: Mapping[str, GateReading]) -> Float[Tensor, " batch"]:
    """Multiply-adds that the learners of all modules spent on each image of a recorded batch."""
    return torch.stack([reading.spent for reading in readings.values()]).sum(0)


def share(readings: Mapping[str, GateReading]) -> Float[Tensor, " batch"]:
    """`spent` as a share of the learners' full cost: the budget each image used, in [0, 1]."""
    return spent(readings) / torch.stack([reading.full for reading in readings.values()]).sum()


def reachable(model: nn.Module, readings: Mapping[str, GateReading]) -> tuple[float, float]:
    """The smallest and largest mean budget that choices can give."""
    modules = require_acms(model, "reachable")
    low = full = 0
    for name, reading in readings.items():
        costs, tokens = modules[name].costs, reading.choices.shape[1:].numel()
        low += tokens * costs[reading.least]
        full += tokens * costs[-1]
    return low / full, 1.0


def check_budget(caller: str, budget: float, low: float = 0.0) -> None:
    """Refuse a budget outside of (0, 1] or below what can be reached.

    Raises:
        ConfigError: Says the range.
    """
    if not 0 < budget <= 1:
        raise ConfigError(f"{caller}: budget must be in (0, 1], got {budget}")
    if budget < low - 1e-9:
        raise ConfigError(
            f"{caller}: budget must be from {low:.3g} to 1, what this model can reach since its "
            f"projections always run one learner, got {budget}"
        )


@contextmanager
def evaluation(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Eval (or training) mode and no gradients inside the block; modes are put back after it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.train(training)
            yield
    finally:
        for module, training in modes:
            module.training = training


def images_of(batch: Any) -> Tensor:
    """The images of a batch that is images, or (images, labels, ...)."""
    images: Tensor = batch[0] if isinstance(batch, list | tuple) else batch
    return images


def images_for(model: nn.Module, batch: Any) -> Tensor:
    """`images_of` a batch, on the device of ``model``."""
    return images_of(batch).to(next(model.parameters()).device)


def all_batches(caller: str, batches: Iterable[Any]) -> list[Any]:
    """The batches as a list that can be read again and again.

    Raises:
        ConfigError: There is none.
    """
    held = list(batches)
    if not held:
        raise ConfigError(f"{caller}: batches must hold at least one batch, got none")
    return held
