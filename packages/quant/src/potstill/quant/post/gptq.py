"""Post-training: nearest levels, or levels that keep each layer's output (GPTQ)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from potstill.core import ConfigError
from potstill.quant.post.inputs import columns, pass_through
from potstill.quant.weights.grid import Grid
from potstill.quant.weights.lower import Lowered, lower, lowered
from potstill.quant.weights.quantizers import LearnedStep

__all__ = ["PostTrained", "post_training"]


class PostTrained(NamedTuple):
    """A model that was lowered without training.

    Attributes:
        student: The lowered copy: train it further, or `bake` it.
        missed: Weights that gptq and bias correction left at the nearest levels, since their
            modules never ran or are of another kind.
    """

    student: nn.Module
    missed: list[str]


@dataclass
class _Seen:
    """Second moments and means of a layer's inputs, by group."""

    square: Tensor = field(default_factory=lambda: torch.zeros(()))
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    count: int = 0

    def add(self, x: Tensor) -> None:
        """Inputs [groups positions inputs]."""
        x = x.double()
        self.square = self.square + x.mT @ x
        self.total = self.total + x.sum(1)
        self.count += x.shape[1]


@torch.no_grad()
def post_training(
    model: nn.Module,
    grid: Grid,
    inputs: Iterable[Any] = (),
    *,
    method: Literal["max", "mse", "gptq"] = "mse",
    correct_bias: bool = False,
    damping: float = 0.01,
    **options: Any,
) -> PostTrained:
    """Lower a model without training.

    Source: GPTQ, Frantar et al., ICLR 2023, Eqs. (2), (3) and Algorithm 1, in the order of the
    columns: with the second moments H of a layer's inputs, plus ``damping`` times their mean
    diagonal, and the upper Cholesky factor U of H's inverse, column i is rounded and its error is
    taken out of the later columns, ``w -= (w_i - ŵ_i) / U_ii U_i``. Inputs are those of the
    full-precision model. Bias correction: Nagel et al., ICCV 2019, section 4.2, with measured
    means: ``b += (W - Ŵ) E[x]``.

    Args:
        model: Any module; left as it is.
        grid: Levels of the weights.
        inputs: Inputs of the model for gptq and bias correction: tensors, tuples or mappings.
        method: How levels are found. Linear and Conv2d layers that run have gptq, others mse.
        correct_bias: Correct the biases of these layers.
        damping: Share of the mean diagonal that is added to it.
        **options: Other options of `lower`.

    Returns:
        A lowered copy, and the weights that could not be treated.

    Raises:
        ConfigError: An unknown method, or what `lower` refuses.
        DataError: No inputs where they are needed, or inputs of a layer that are not finite.
    """
    if method not in ("max", "mse", "gptq"):
        raise ConfigError(f"post_training: method must be max, mse or gptq, got {method!r}")
    student = lower(model, grid, start="max" if method == "max" else "mse", **options)
    if method != "gptq" and not correct_bias:
        return PostTrained(student, [])
    layers = {each.path: each for each in lowered(student) if _fits(each)}
    seen = {path: _Seen() for path in layers}
    plain = {path: model.get_submodule(path) for path in layers}

    def see(path: str, x: Tensor) -> None:
        found = columns(plain[path], x)
        assert found is not None
        seen[path].add(found)

    bypassed = pass_through("post_training", model, inputs, plain, see)
    for path, each in layers.items():
        if path in bypassed:
            continue
        before = each.original.detach().clone()
        if method == "gptq":
            each.original.copy_(_gptq(each, seen[path], damping))
        if correct_bias and each.module.bias is not None:
            difference = (before - each.quantizer(each.original)).flatten(1).double()
            mean = seen[path].total / seen[path].count
            groups = difference.reshape(len(mean), -1, difference.shape[1])
            each.module.bias += (groups @ mean[..., None]).flatten().to(before.dtype)
    done = [each.key for path, each in layers.items() if path not in bypassed]
    return PostTrained(student, [each.key for each in lowered(student) if each.key not in done])


def _fits(each: Lowered) -> bool:
    return (
        isinstance(each.module, nn.Linear | nn.Conv2d)
        and each.name == "weight"
        and isinstance(each.quantizer, LearnedStep)
        and each.quantizer.grid.axis in (0, None)
    )


def _gptq(each: Lowered, seen: _Seen, damping: float) -> Tensor:
    """Weights on the grid that keep the layer's output, in the shape of the weight."""
    weight, quantizer = each.original.detach(), each.quantizer
    assert isinstance(quantizer, LearnedStep)
    grid, rows = quantizer.grid, weight.flatten(1)
    scale = _scales(quantizer, rows)
    parts = []
    groups = len(seen.square)
    for w, s, moments in zip(rows.chunk(groups), scale.chunk(groups), seen.square, strict=True):
        w, s, moments = w.double().clone(), s.double(), moments / seen.count
        diagonal = moments.diagonal()
        diagonal += damping * diagonal.mean() + 1e-12
        factor = torch.linalg.cholesky(
            torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True
        )
        found = torch.empty_like(w)
        for i in range(w.shape[1]):
            found[:, i] = grid.values(grid.integers(w[:, i], s[:, i]), s[:, i])
            error = (w[:, i] - found[:, i]) / factor[i, i]
            w[:, i:] -= error[:, None] * factor[i, i:]
        parts.append(found)
    return torch.cat(parts).reshape(weight.shape).to(weight.dtype)


def _scales(quantizer: LearnedStep, rows: Tensor) -> Tensor:
    """The scale of each weight, [rows inputs], whatever shares it."""
    grid, scale = quantizer.grid, quantizer.scale.detach()
    width = grid.rows(rows).shape[1]
    return grid.shaped(scale.expand(-1, width), rows)
