"""The objective: named criteria with weights, and what they evaluate to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from potstill.core.errors import ObjectiveError, nearest
from potstill.core.vocabulary.mean import counted
from potstill.core.vocabulary.schedule import Weight

__all__ = ["Criterion", "Losses", "Objective"]

Criterion = Callable[..., Tensor]
"""Pure ``(student, teacher, *context) -> scalar``: a function or a small module. What averages over
something other than the rows of its first tensor (a mask, edges) returns a `Mean`."""


class Part(NamedTuple):
    """A term as a part of the total.

    Attributes:
        value: A mean, times the weight of the term, with gradient.
        items: Number or weight of what the mean is over.
        key: Parts with one key are over the same items.
    """

    value: Tensor
    items: float | Tensor
    key: Hashable


class Losses(NamedTuple):
    """What an objective evaluated to.

    Attributes:
        total: Weighted sum of the terms, a scalar with gradient.
        terms: The unweighted terms, detached scalars.
        weights: The weights that were applied.
        parts: Summands of ``total``, with counts, by which `fit` averages over micro-batches
            and processes. Without them it averages totals, each with the same weight.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]
    parts: tuple[Part, ...] = ()


class Objective(nn.Module):
    """A weighted sum of named criteria: ``total = sum_k weight_k(step) * criterion_k(*tensors_k)``.

    Terms whose weight is zero at a step are not computed. Criteria that are modules (a projector,
    an adaptive temperature) are sub-modules, so their parameters train together with the student.

    Args:
        terms: ``{name: (weight, criterion)}``; a weight is a number or a function of the step.
        **more: The same as keywords.

    Raises:
        ObjectiveError: A term is not a pair, a criterion is not callable, or there is no term.

    Example:
        >>> import torch.nn.functional as F
        >>> objective = Objective(task=(1.0, F.l1_loss), output=(0.5, F.mse_loss))
        >>> x, y = torch.zeros(2), torch.ones(2)
        >>> objective(0, task=(x, y), output=(x, y)).total
        tensor(1.5000)
    """

    def __init__(
        self,
        terms: Mapping[str, tuple[Weight, Criterion]] | None = None,
        /,
        **more: tuple[Weight, Criterion],
    ) -> None:
        super().__init__()
        self._terms: dict[str, tuple[Weight, Criterion]] = {}
        modules: dict[str, nn.Module] = {}
        for name, term in {**(terms or {}), **more}.items():
            if not (isinstance(term, tuple) and len(term) == 2):
                raise ObjectiveError(
                    f"Objective: term {name!r} must be (weight, criterion), got {term!r}"
                )
            weight, criterion = term
            if not (callable(weight) or isinstance(weight, int | float)):
                raise ObjectiveError(
                    f"Objective: the weight of {name!r} must be a number or a function of the "
                    f"step, got {weight!r}; the order is (weight, criterion)"
                )
            if not callable(criterion):
                raise ObjectiveError(
                    f"Objective: the criterion of {name!r} must be callable, got {criterion!r}"
                )
            self._terms[name] = (weight, criterion)
            if isinstance(criterion, nn.Module):
                modules[name] = criterion
        if not self._terms:
            raise ObjectiveError("Objective: at least one term is needed, got none")
        # Names may be module paths ("blocks.3.mlp"); a dot is not allowed in a sub-module's name.
        self.criteria = nn.ModuleDict({k.replace(".", ":"): m for k, m in modules.items()})

    @classmethod
    def each(cls, names: Iterable[str], weight: Weight, criterion: Criterion) -> Objective:
        """One term for each name, all with the same weight and criterion."""
        return cls({name: (weight, criterion) for name in names})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all terms, in order."""
        return tuple(self._terms)

    def items(self) -> Iterator[tuple[str, tuple[Weight, Criterion]]]:
        """Name, weight and criterion of each term, in order."""
        return iter(self._terms.items())

    def module(self, name: str) -> nn.Module | None:
        """The criterion called ``name`` if it is a module, which may have parameters."""
        criterion = self._terms[name][1]
        return criterion if isinstance(criterion, nn.Module) else None

    def at(self, step: int) -> dict[str, float]:
        """The non-zero weights at ``step``: what has to be computed.

        Raises:
            ObjectiveError: A schedule returned NaN or an infinite weight.
        """
        weights = {}
        for name, (weight, _) in self._terms.items():
            value = float(weight(step) if callable(weight) else weight)
            if value != value or value in (float("inf"), float("-inf")):
                raise ObjectiveError(f"Objective: the weight of {name!r} at step {step} is {value}")
            if value != 0.0:
                weights[name] = value
        return weights

    def forward(
        self,
        step: int,
        tensors: Mapping[str, Sequence[Any]] | None = None,
        /,
        **more: Sequence[Any],
    ) -> Losses:
        """Evaluate the terms that have weight at ``step``.

        Args:
            step: The current step, from 0.
            tensors: ``{name: arguments of the criterion}``. Arguments of terms without weight are
                ignored and may be left out.
            **more: The same as keywords.

        Raises:
            ObjectiveError: An unknown name; a weighted term without tensors; a term that is not a
                scalar tensor; no term with weight.
        """
        given = {**(tensors or {}), **more}
        for name in given:
            if name not in self._terms:
                raise ObjectiveError(
                    f"Objective: unknown term {name!r}; {nearest(name, self.names)}"
                )
        weights = self.at(step)
        missing = [name for name in weights if name not in given]
        if missing:
            raise ObjectiveError(
                f"Objective: step {step} needs tensors for {', '.join(map(repr, missing))}, which "
                f"have weight; got only {', '.join(map(repr, given)) or 'none'}"
            )
        if not weights:
            raise ObjectiveError(
                f"Objective: no term has weight at step {step}; known: {', '.join(self.names)}"
            )
        values = {name: self._evaluate(name, given[name]) for name in weights}
        parts = tuple(p._replace(value=weights[n] * p.value) for n, p in values.items())
        total = torch.stack([part.value for part in parts]).sum()
        terms = {name: part.value.detach() for name, part in values.items()}
        return Losses(total, terms, weights, parts)

    def _evaluate(self, name: str, arguments: Sequence[Any]) -> Part:
        if not isinstance(arguments, tuple | list):
            raise ObjectiveError(
                f"Objective: term {name!r} takes a tuple of arguments, got "
                f"{type(arguments).__name__}"
            )
        criterion = self._terms[name][1]
        value = criterion(*arguments)
        if not (isinstance(value, Tensor) and value.ndim == 0):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ObjectiveError(f"Objective: term {name!r} must be a scalar tensor, got {got}")
        return Part(*counted(criterion, arguments, value))

    def extra_repr(self) -> str:
        """Names and weights, for ``print``."""
        return ", ".join(f"{name}={weight}" for name, (weight, _) in self._terms.items())
