"""Many students from one training: the sandwich rule, with subnets that wait."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core.criteria import kd
from potstill.core.errors import ConfigError
from potstill.core.vocabulary.distiller import Distiller
from potstill.core.vocabulary.objective import Criterion, Losses, Objective
from potstill.core.vocabulary.schedule import delayed

__all__ = ["Sandwich"]


class Sandwich(Distiller):
    """The largest, the smallest and some random subnets in each step.

    Source: the sandwich rule of Yu et al., BigNAS, ECCV 2020. With ``delay`` it is Annavajjala et
    al., "Delayed epsilon-Shrinking for Faster Once-For-All Training", ECCV 2024: subnets wait until
    the largest is worth learning from. The constants of its rise are not published. It is done here
    on the weight of the subnets' terms, which scales their gradient: the same thing under SGD, and
    their share of the update under Adam.

    Terms: ``full``, the task of the largest; ``smallest``; ``random``, mean over the random ones.
    Subnets learn from the largest in place, or from ``teacher`` where there is one; then ``taught``
    is what the largest learns from it.

    A subclass says what a subnet is: `run`, `draw`, and the attributes ``largest`` and ``least``,
    before the first step.

    Args:
        student: All subnets in one.
        steps: Length of the whole training, of which delay and rise are shares.
        random: Random subnets a step.
        delay: Share in which the largest trains alone.
        warmup: Share in which the weight of the subnets then rises.
        temperature: Temperature of the distillation, > 0.
        task: Criterion on the labels; None trains without them, on a teacher alone.
        teacher: A teacher of all of them.
        distance: Criterion between the outputs of `run` and of `reference`; kd by default.

    Raises:
        ConfigError: Options out of range.
    """

    largest: Any
    least: Any

    def __init__(
        self,
        student: nn.Module,
        steps: int,
        *,
        random: int = 2,
        delay: float = 0.5,
        warmup: float = 0.1,
        temperature: float = 1.0,
        task: Criterion | None = F.cross_entropy,
        teacher: nn.Module | None = None,
        distance: Criterion | None = None,
    ) -> None:
        if steps < 1 or random < 0 or not temperature > 0:
            raise ConfigError(
                f"{type(self).__name__}: steps, random and temperature must be positive, got "
                f"{steps}, {random} and {temperature}"
            )
        if task is None and teacher is None:
            raise ConfigError(
                f"{type(self).__name__}: task or teacher must be given, got neither; nothing would "
                "teach the largest"
            )
        mean = partial(_mean, distance=distance or partial(kd, T=temperature))
        subnets = (delayed(steps, delay, warmup), mean)
        names = ["smallest", "random"] if random else ["smallest"]
        terms: dict[str, tuple[Any, Criterion]] = {} if task is None else {"full": (1.0, task)}
        terms |= dict.fromkeys(names, subnets)
        if teacher is not None:
            terms["taught"] = (1.0, subnets[1])
        super().__init__(student, Objective(terms), teacher)
        self.random = random

    @abstractmethod
    def run(self, part: Any, x: Any) -> Tensor:
        """Logits of a subnet."""

    @abstractmethod
    def draw(self) -> Any:
        """A random subnet, the same in all processes: see `potstill.core.common_draws`."""

    def reference(self, x: Any) -> Any:
        """What the teacher says, for ``distance``."""
        assert self.teacher is not None
        return self.teacher(x)

    def forward(self, batch: Any, step: int) -> Losses:
        """Terms of a batch (inputs, labels); subnets without weight do not run."""
        x, y = batch
        names = self.objective.at(step)
        full = self.run(self.largest, x)
        target = full if self.teacher is None else self.reference(x)
        terms: dict[str, tuple[Any, ...]] = {"full": (full, y)} if "full" in names else {}
        if "taught" in names:
            terms["taught"] = ([full], target)
        if "smallest" in names:
            terms["smallest"] = ([self.run(self.least, x)], target)
        if "random" in names:
            parts = [self.draw() for _ in range(self.random)]
            terms["random"] = ([self.run(part, x) for part in parts], target)
        return self.objective(step, terms)


def _mean(outputs: Sequence[Tensor], target: Tensor, distance: Criterion) -> Tensor:
    """Mean over several subnets."""
    return torch.stack([distance(output, target) for output in outputs]).mean()
