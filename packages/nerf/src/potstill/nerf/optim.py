"""Row-lazy Adam: rows of a table that got no gradient are not touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

from potstill.core import ConfigError
from potstill.nerf.backends import ENCODERS, native
from potstill.nerf.backends.gradients import POOL

__all__ = ["RowAdam"]


class RowAdam(Optimizer):
    """Adam that leaves rows of tables alone where their gradient is zero.

    Source: Kingma and Ba, "Adam", ICLR 2015, Algorithm 1; the laziness is that of
    ``torch.optim.SparseAdam``: moments of a row do not decay in steps that do not touch it. It
    holds for parameters called ``table``; the others get torch's dense Adam.

    On the CPU the kernel reads a row's gradient, updates the row, and clears the gradient in one
    pass, and the cleared buffer goes back to the backward: no gradient is allocated or zeroed.

    Args:
        params: ``(name, parameter)`` pairs, as `potstill.core.fit` gives them.
        lr: Learning rate of all parameters.
        betas: Decay of the moments.
        eps: Added to the root of the second moment.
        scale: Factor of ``lr`` by parameter name, e.g. ``lambda name: 0.1``.

    Raises:
        ConfigError: Parameters without names.

    Example:
        >>> field = torch.nn.Linear(2, 1)
        >>> optimizer = RowAdam(field.named_parameters(), lr=1e-2)
        >>> field(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        scale: Callable[[str], float] | None = None,
    ) -> None:
        groups: dict[tuple[bool, float], list[Tensor]] = {}
        for pair in params:
            if not (isinstance(pair, tuple) and isinstance(pair[0], str)):
                raise ConfigError(
                    "RowAdam: params must be (name, parameter) pairs, got a "
                    f"{type(pair).__name__}; pass module.named_parameters()"
                )
            name, parameter = pair
            factor = 1.0 if scale is None else scale(name)
            groups.setdefault((name.rpartition(".")[2] == "table", factor), []).append(parameter)
        super().__init__(
            [
                {"params": parameters, "rows": rows, "lr": lr * factor}
                for (rows, factor), parameters in groups.items()
            ],
            {"lr": lr, "betas": betas, "eps": eps},
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
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter].update(
                        step=torch.tensor(0.0),
                        exp_avg=torch.zeros_like(parameter),
                        exp_avg_sq=torch.zeros_like(parameter),
                    )
            if group["rows"]:
                for parameter in parameters:
                    self._step_rows(parameter, group)
            elif parameters:
                self._step_dense(parameters, group)

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        adam(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _step_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[table], table.grad
        assert gradient is not None
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        rate = group["lr"] / (1 - beta1**step)
        correction = (1 - beta2**step) ** -0.5
        moments = (state["exp_avg"], state["exp_avg_sq"])
        tensors = (table, gradient, *moments)
        if table.shape[1] in native.WIDTHS and not gradient.is_sparse and _is_native(tensors):
            flags = _flags(gradient)
            native.row_adam(
                *(table, *moments, gradient, flags),
                *(rate, group["betas"], group["eps"], correction),
            )
            table.grad = None
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
