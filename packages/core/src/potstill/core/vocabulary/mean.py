"""Means that remember what they were divided by, so that `fit` can put them together again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Mean", "counted", "labels_key"]

_LABELLED = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)


class Mean(Tensor):
    """``total / max(count, 1)``: a scalar that remembers the count.

    It behaves as the scalar that it is; what is computed from it is a plain tensor. `fit` makes
    one mean of the means of all micro-batches and processes by their counts, so that a criterion
    that returns this does not depend on how a batch is split.

    Args:
        total: Sum over items, a scalar with gradient.
        count: Number or weight of the items. A number where it follows the size of the batch; a
            tensor where it does not (masks, edges): such a term may cost a backward of its own.

    Attributes:
        count: As given.
        key: Name of the count, where other terms may count the same: terms with one key share a
            gradient.

    Example:
        >>> def over_tokens(z_s, z_t, mask):
        ...     return Mean(((z_s - z_t).square().mean(-1) * mask).sum(), mask.sum())
        >>> value = over_tokens(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, 0.0]))
        >>> value, value.count
        (tensor(1.), tensor(1.))
    """

    count: float | Tensor
    key: Hashable
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    # ``loss += other`` makes a new tensor too: one that kept its count would be a wrong mean.
    __iadd__, __isub__ = Tensor.__add__, Tensor.__sub__
    __imul__, __itruediv__ = Tensor.__mul__, Tensor.__truediv__

    def __new__(cls, total: Tensor, count: float | Tensor) -> Mean:
        """Divide."""
        least = count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)
        return cls.known(total / least, count)

    @classmethod
    def known(cls, mean: Tensor, count: float | Tensor, key: Hashable = None) -> Mean:
        """What is a mean already, over ``count`` items, or over 1 where that is less."""
        # A tensor of another class (sharded, wrapped) cannot be of two: it carries the count.
        plain = type(mean) in (Tensor, nn.Parameter, cls)
        value: Any = mean.as_subclass(cls) if plain else mean.clone()
        value.count = count
        value.key = key
        made: Mean = value
        return made

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of numbers, in float64; 0 of none."""
        return cls(torch.tensor(sum(values), dtype=torch.float64), len(values))

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        """As the scalar that it is."""
        return repr(self.as_subclass(Tensor))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Write a plain tensor."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def labels_key(target: Tensor, ignore_index: int) -> Hashable:
    """The key of terms that count the labels of one tensor."""
    return None if torch.compiler.is_compiling() else (id(target), ignore_index)


def counted(
    criterion: Any, arguments: Sequence[Any], value: Tensor
) -> tuple[Tensor, float | Tensor, Hashable]:
    """What a criterion gave, over how many items, and the key of the count.

    torch's cross-entropies count the labels that are not ignored. Everything else that does not
    say itself what it counts is taken as a mean over the rows of its first tensor.
    """
    if isinstance(value, Mean) or hasattr(value, "count"):
        known: Any = value
        own = id(known.count) if isinstance(known.count, Tensor) else known.count
        return value, known.count, own if known.key is None else known.key
    labels = _labels(criterion, arguments)
    if labels is not None:
        return value.where(labels[0] > 0, 0), *labels
    flat = [x for a in arguments for x in (a if isinstance(a, tuple | list) else (a,))]
    rows = max(next((len(x) for x in flat if isinstance(x, Tensor) and x.ndim), 1), 1)
    return value, rows, rows


def _labels(criterion: Any, arguments: Sequence[Any]) -> tuple[Tensor, Hashable] | None:
    """How many labels torch divided by, in units of the least weight of a class."""
    options: dict[str, Any] = {}
    if isinstance(criterion, partial) and not criterion.args:
        options, criterion = criterion.keywords, criterion.func
    elif isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        options = {name: getattr(criterion, name) for name in ("ignore_index", "reduction")}
        options["weight"], criterion = criterion.weight, type(criterion)
    if criterion not in _LABELLED or len(arguments) != 2 or arguments[1].is_floating_point():
        return None
    target, ignored = arguments[1], options.get("ignore_index", -100)
    counts, weight = target != ignored, options.get("weight")
    if options.get("reduction", "mean") != "mean":
        return None
    if weight is None:
        return counts.sum(), labels_key(target, ignored)
    least = weight.where(weight > 0, float("inf")).min()  # not by a mask: that waits for a GPU
    shares = weight[target.where(counts, 0)] / least
    count = (shares * counts).sum()
    return count, id(count)
