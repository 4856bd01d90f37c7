"""Means over whole maps, found while a network runs, so that tiles can share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Reductions", "Statistics", "own_statistics"]


class Statistics(NamedTuple):
    """What is known of a map, ``[1 C]`` each.

    Attributes:
        pixels: Number of pixels.
        mean: Mean.
        variance: Population variance.
        peak: Largest value.
    """

    pixels: int
    mean: Tensor
    variance: Tensor
    peak: Tensor


Ask = Callable[[Tensor], Statistics]
"""Gives the statistics that a map ``[1 C h w]`` counts with: its own, or those of all tiles."""


def own_statistics(x: Tensor, *, detach: bool = False) -> Statistics:
    """Statistics of one map."""
    values = x.detach() if detach else x
    variance, mean = torch.var_mean(values, dim=(2, 3), correction=0)
    return Statistics(x.shape[2] * x.shape[3], mean, variance, values.amax(dim=(2, 3)))


class Reductions(TorchFunctionMode):
    """Answers every reduction of a map to one value a channel by what ``ask`` says.

    Known are means, variances, standard deviations and maxima over both axes, pooling to one
    pixel, and instance and group normalization: whatever is written in Python, by whichever name.
    """

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self.ask = ask

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer a reduction, or call ``function``."""
        kwargs = kwargs or {}
        answer = _ANSWERS.get(getattr(function, "__name__", ""))
        made = answer(self.ask, *args, **kwargs) if answer is not None else None
        return function(*args, **kwargs) if made is None else made


def _is_map(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[0] == 1 and x[0, 0].numel() > 1


def _both(x: Tensor, dim: Any) -> bool:
    """Whether ``dim`` names height and width and nothing else."""
    named = sorted(d % 4 for d in (dim if isinstance(dim, tuple | list) else (dim,)))
    return named == [2, 3]


def _shaped(values: Tensor, keepdim: bool) -> Tensor:
    return values[:, :, None, None] if keepdim else values


def _reduction(take: Callable[[Statistics, dict[str, Any]], Any]) -> Callable[..., Any]:
    def answer(
        ask: Ask, x: Any, dim: Any = None, *args: Any, keepdim: bool = False, **options: Any
    ) -> Any:
        dim = options.pop("axis", dim)
        if not _is_map(x) or dim is None or not _both(x, dim):
            return None
        if args and isinstance(args[-1], bool):  # mean(x, dim, keepdim); var(x, dim, unbiased, ..)
            *rest, keepdim = args
            if rest:
                options["unbiased"] = rest[0]
        made = take(ask(x), options)
        if isinstance(made, tuple):
            return tuple(_shaped(part, keepdim) for part in made)
        return _shaped(made, keepdim)

    return answer


def _variance(found: Statistics, options: dict[str, Any]) -> Tensor:
    correction = options.get("correction", 1 if options.get("unbiased", True) else 0)
    return found.variance * (found.pixels / (found.pixels - correction))


def _pooled(take: Callable[[Statistics], Tensor]) -> Callable[..., Any]:
    def answer(ask: Ask, x: Any, size: Any = None, *args: Any, **options: Any) -> Any:
        size = options.get("output_size", size)
        if not _is_map(x) or size not in (1, (1, 1), [1, 1]):
            return None
        return _shaped(take(ask(x)), keepdim=True)

    return answer


def _whole_pool(ask: Ask, x: Any, kernel_size: Any = None, *args: Any, **options: Any) -> Any:
    if not _is_map(x) or tuple(kernel_size if isinstance(kernel_size, tuple | list | torch.Size)
                               else (kernel_size,) * 2) != tuple(x.shape[2:]):  # fmt: skip
        return None
    return _shaped(ask(x).mean, keepdim=True)


def _scaled(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Any, bias: Any, eps: float
) -> Tensor:
    y = (x - _shaped(mean, True)) * _shaped((variance + eps).rsqrt(), True)
    y = y if weight is None else y * weight[:, None, None]
    return y if bias is None else y + bias[:, None, None]


def _instance_norm(
    ask: Ask, x: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if not _is_map(x) or not use_input_stats:
        return None
    found = ask(x)
    return _scaled(x, found.mean, found.variance, weight, bias, eps)


def _group_norm(
    ask: Ask, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    if not _is_map(x):
        return None
    found = ask(x)
    mean = found.mean.reshape(1, num_groups, -1)
    middle = mean.mean(2, keepdim=True)
    spread = found.variance.reshape(mean.shape) + (mean - middle).square()
    repeats = mean.shape[2]
    variance = spread.mean(2).repeat_interleave(repeats, 1)
    return _scaled(x, middle[..., 0].repeat_interleave(repeats, 1), variance, weight, bias, eps)


_ANSWERS: dict[str, Callable[..., Any]] = {
    "mean": _reduction(lambda found, options: found.mean),
    "amax": _reduction(lambda found, options: found.peak),
    "var": _reduction(_variance),
    "std": _reduction(lambda found, options: _variance(found, options).sqrt()),
    "var_mean": _reduction(lambda found, options: (_variance(found, options), found.mean)),
    "std_mean": _reduction(lambda found, options: (_variance(found, options).sqrt(), found.mean)),
    "adaptive_avg_pool2d": _pooled(lambda found: found.mean),
    "adaptive_max_pool2d": _pooled(lambda found: found.peak),
    "avg_pool2d": _whole_pool,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
}
