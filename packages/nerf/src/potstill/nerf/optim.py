"""Optimizers of fields: row-lazy Adam, and the learning rates of kinds and of their parts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Adam, Optimizer

from potstill.core import ConfigError, Distiller
from potstill.core.engine import MakeOptimizer
from potstill.nerf.backends import ENCODERS, native
from potstill.nerf.backends.gradients import POOL

__all__ = ["RATES", "RowAdam", "row_adam", "with_rates"]

RATES = {"hash": 1e-2, "mlp": 1e-2, "vm": 2e-2, "cp": 2e-2, "grid": 0.3, "composite": 1e-2}
"""Learning rates by kind; `Field.rate` scales them for parts of a field."""


class RowAdam(Adam):
    """Adam that leaves rows of tables alone where their gradient is zero.

    Source: Kingma and Ba, "Adam", ICLR 2015, Algorithm 1; the laziness is that of
    ``torch.optim.SparseAdam``: moments of a row do not decay in steps that do not touch it. It
    holds for parameters called ``table``; the others get torch's dense Adam.

    On the CPU the kernel reads a row's gradient, updates the row, and clears the gradient in one
    pass, and the cleared buffer goes back to the backward: no gradient is allocated or zeroed.

    Args:
        params: ``(name, parameter)`` pairs, as `potstill.core.fit` gives them, or groups of them.
        lr: Learning rate, where a group has none of its own.
        betas: Decay of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Must be 0: it would move rows that no gradient touches.

    Raises:
        ConfigError: Parameters without names, or weight decay.

    Example:
        >>> field = torch.nn.Linear(2, 1)
        >>> optimizer = RowAdam(field.named_parameters(), lr=1e-2)
        >>> field(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        weight_decay: float = 0.0,
    ) -> None:
        if weight_decay:
            raise ConfigError(
                f"RowAdam: weight_decay must be 0, got {weight_decay}; it would move rows without "
                "a gradient: choose the optimizer adamw"
            )
        super().__init__(params, lr=lr, betas=betas, eps=eps, foreach=True)
        if not all("param_names" in group for group in self.param_groups):
            raise ConfigError(
                "RowAdam: params must be (name, parameter) pairs, got parameters; pass "
                "module.named_parameters()"
            )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Raises:
            ConfigError: A closure is given.
        """
        if closure is not None:
            raise ConfigError("RowAdam.step: closure must be None, got one")
        for group in self.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                if name.rpartition(".")[2] == "table" and parameter.grad is not None:
                    self._step_rows(parameter, group)
        inspect.unwrap(Adam.step)(self)  # the others; hooks of this step are not run twice

    def _step_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[table], table.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(table) for _ in range(2))
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        rate = group["lr"] / (1 - beta1**step)
        correction = (1 - beta2**step) ** -0.5
        moments = (state["exp_avg"], state["exp_avg_sq"])
        tensors = (table, gradient, *moments)
        table.grad = None
        if table.shape[1] in native.WIDTHS and not gradient.is_sparse and _is_native(tensors):
            flags = _flags(gradient)
            native.row_adam(
                *(table, *moments, gradient, flags),
                *(rate, group["betas"], group["eps"], correction),
            )
            POOL.give_back(gradient, flags)
            return
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, g = gradient.indices()[0], gradient.values()
        else:
            rows = gradient.any(dim=1).nonzero()[:, 0]
            g = gradient[rows]
        mean = moments[0][rows].lerp(g, 1 - beta1)
        square = moments[1][rows] * beta2 + (1 - beta2) * g * g
        moments[0][rows], moments[1][rows] = mean, square
        table[rows] -= rate * mean / (square.sqrt() * correction + group["eps"])


def _is_native(tensors: Iterable[Tensor]) -> bool:
    fit = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return fit and all(t.is_contiguous() for t in tensors) and not ENCODERS["native"].missing


def _flags(gradient: Tensor) -> Tensor:
    flags = POOL.flags(gradient)
    if dist.is_available() and dist.is_initialized():
        flags.fill_(1)  # other processes have written to other rows
    return flags


def with_rates(make: MakeOptimizer, distiller: Distiller) -> MakeOptimizer:
    """``make`` with the factors of `Field.rate`; criteria learn at the full rate.

    Args:
        make: Optimizer factory that takes groups of named parameters.
        distiller: Distiller whose student is a field.
    """
    student: Any = distiller.student
    rates = {f"student.{name}": student.rate(name) for name, _ in student.named_parameters()}
    return partial(_grouped, make, rates)


def row_adam(distiller: Distiller) -> MakeOptimizer:
    """`RowAdam` at the rates of the student: the optimizer of fields by default."""
    return with_rates(RowAdam, distiller)


def _grouped(
    make: MakeOptimizer, rates: dict[str, float], named: Iterable[tuple[str, Tensor]], lr: float
) -> Optimizer:
    groups: dict[float, list[tuple[str, Tensor]]] = {}
    for name, parameter in named:
        groups.setdefault(rates.get(name, 1.0), []).append((name, parameter))
    return make([{"params": pairs, "lr": lr * rate} for rate, pairs in groups.items()], lr=lr)
