"""One update of the optimizer: its micro-batches in all processes average as one batch would."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.core.engine.player import Player
from potstill.core.vocabulary.objective import Losses, Part

__all__ = ["Outcome", "Update"]


class Outcome(NamedTuple):
    """What an update has seen, the same in every process.

    Attributes:
        loss: Weighted sum of the terms.
        terms: Means over all items of all micro-batches and processes.
        state: The last `state` that was given, averaged over the processes.
        broken: The first micro-batch with a value that is not finite.
    """

    loss: float
    terms: dict[str, float]
    state: list[float]
    broken: int | None


class Update:
    """Gradients and values of the micro-batches of one update.

    A term is ``sum / count`` over all items, and what later micro-batches count is not known when
    a gradient is made. So it is made as if all counted what the first does, and put right when all
    is known. Terms that do not count the same items need a gradient each until then; the last
    micro-batch is one backward again.

    Args:
        player: The player whose parameters are updated.
        micros: Number of micro-batches.
    """

    def __init__(self, player: Player, micros: int) -> None:
        self.player, self.engine, self.micros = player, player.engine, micros
        self.losses: list[Losses] = []
        self.numbers: list[Tensor] = []  # of each micro-batch, summed over the processes
        self.items: list[Tensor] = []  # what its terms count: the first of its numbers
        self.groups: list[list[int]] = []  # terms that count the same
        self.gradients: list[list[Tensor | None]] = []  # of each group, where there are several

    def add(self, losses: Losses, state: list[float]) -> None:
        """Take in a micro-batch: its values, and its gradient.

        Collective: every process has the same terms.
        """
        parts = losses.parts or (Part(losses.total, 1, 1),)
        counts = self._share(losses, parts, state)
        if self.micros == self.engine.world == 1:
            self.engine.backward(losses.total)
            return
        self._group(parts)
        last, several = len(self.items) == self.micros, len(self.groups) > 1
        if several:
            self.engine.exchange(self.player.module)
        if last and several:
            self._put_together()
            divisor = self._all()
        else:
            divisor = self._as_the_first()
        values = torch.stack([part.value for part in parts])
        shares = values * (counts * self.engine.world / divisor).to(values.dtype)
        if last or not several:
            self.engine.backward(shares.sum())
        else:
            self._backward_of_each_group(shares)

    def finish(self) -> Outcome:
        """Put the gradient right, and say what the terms are over all items."""
        rows, counted = torch.stack(self.numbers).tolist(), len(self.items[0])
        numbers = [row[counted:] for row in rows]  # all that is waited for in an update
        broken = next(
            (i for i, row in enumerate(numbers) if not all(map(math.isfinite, row))), None
        )
        if self.micros > 1 and len(self.groups) == 1 and broken is None:
            factor = self.micros * max(rows[0][0], 1) / max(sum(row[0] for row in rows), 1)
            for parameter in self.player.trained:
                if factor != 1 and parameter.grad is not None:
                    parameter.grad.mul_(factor)
        first, world = self.losses[0], self.engine.world
        total, *rest = (sum(column) for column in zip(*numbers, strict=True))
        means, sums, counts = (rest[i::3][: len(first.terms)] for i in range(3))
        terms = [value / max(count, 1) for value, count in zip(sums, counts, strict=True)]
        # The totals have the means of means in them, which is not always the mean over all.
        batches = self.micros * world
        apart = [term - mean / batches for term, mean in zip(terms, means, strict=True)]
        loss = total / batches
        loss += sum(
            first.weights.get(name, 0) * gap for name, gap in zip(first.terms, apart, strict=True)
        )
        state = [value / world for value in numbers[-1][1 + 3 * len(terms) :]]
        return Outcome(loss, dict(zip(first.terms, terms, strict=True)), state, broken)

    def _share(self, losses: Losses, parts: Sequence[Part], state: list[float]) -> Tensor:
        """Exchange values and counts; returns this process's own counts, at least 1, [K]."""
        device = losses.total.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        own = torch.stack([_scalar(part.items, wide, device) for part in parts])
        least = own.clamp_min(1)
        values = torch.stack([v.detach().to(wide) for v in (losses.total, *losses.terms.values())])
        means = values[1:]
        by_term = torch.stack([means, means * least, own.expand_as(means)], 1).flatten()
        more = torch.stack([_scalar(value, wide, device) for value in state])
        shared = self.engine.sum(torch.cat([own, values[:1], by_term, more]))
        self.losses.append(_without_graph(losses))
        self.items.append(shared[: len(parts)])
        self.numbers.append(shared)
        return least

    def _group(self, parts: Sequence[Part]) -> None:
        """Find the terms that count the same; those of numbers, by the first micro-batch."""
        keys = [part.key for part in parts]
        if self.engine.world > 1 and self.micros > 1 and not self.groups:  # the same everywhere
            found = zip(parts, keys, self.items[-1].tolist(), strict=True)
            keys = [key if isinstance(part.items, Tensor) else n for part, key, n in found]
        if not self.groups:
            same = dict.fromkeys(keys)
            self.groups = [[i for i, k in enumerate(keys) if k == key] for key in same]
        elif any(len({keys[i] for i in group}) > 1 for group in self.groups):
            warnings.warn(
                "fit: terms that counted the same in the first micro-batch do not in a later one; "
                "all are weighted by the first of them. Return Mean(total, count), with a tensor "
                "as the count, from a criterion that does not average over the batch",
                stacklevel=2,
            )

    def _all(self) -> Tensor:
        """What the terms count in all micro-batches and processes, at least 1."""
        return torch.stack(self.items).sum(0).clamp_min(1)

    def _as_the_first(self) -> Tensor:
        return self.micros * self.items[0].clamp_min(1)

    def _backward_of_each_group(self, shares: Tensor) -> None:
        trained = self.player.trained
        self.gradients = self.gradients or [[None] * len(trained) for _ in self.groups]
        for number, group in enumerate(self.groups):
            for parameter, gradient in zip(trained, self.gradients[number], strict=True):
                parameter.grad = gradient
            self.engine.backward(shares[group].sum(), again=number + 1 < len(self.groups))
            self.gradients[number] = [parameter.grad for parameter in trained]
        self.player.optimizer.zero_grad(set_to_none=True)

    def _put_together(self) -> None:
        """Make one gradient of those of the groups, now that all counts are known."""
        factors = self._as_the_first() / self._all()
        for group, gradients in zip(self.groups, self.gradients, strict=False):
            for parameter, gradient in zip(self.player.trained, gradients, strict=True):
                if gradient is not None:
                    gradient.mul_(factors[group[0]])
                    parameter.grad = (
                        gradient if parameter.grad is None else parameter.grad.add_(gradient)
                    )
        self.gradients = []


def _scalar(count: float | Tensor, kind: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(count, Tensor):
        return count.detach().to(device, kind)
    return torch.full((), count, dtype=kind, device=device)


def _without_graph(losses: Losses) -> Losses:
    return losses._replace(total=losses.total.detach(), parts=())
