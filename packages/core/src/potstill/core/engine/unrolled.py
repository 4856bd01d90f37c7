"""Differentiable inner loops: the parameters after steps of gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from potstill.core.errors import ConfigError

__all__ = ["unrolled"]


def unrolled(
    model: nn.Module,
    loss: Callable[[Callable[..., Any]], Tensor],
    *,
    lr: float | Tensor,
    steps: int = 1,
    parameters: Mapping[str, Tensor] | None = None,
    create_graph: bool = True,
) -> dict[str, Tensor]:
    """Parameters of ``model`` after ``steps`` of SGD, differentiable in all that ``loss`` uses.

    ``theta_{k+1} = theta_k - lr grad_theta loss(theta_k)``; the model itself is not changed, and
    buffers (batch statistics) are neither written nor unrolled.

    Source: Maclaurin, Duvenaud and Adams, Gradient-based Hyperparameter Optimization through
    Reversible Learning, ICML 2015; Finn et al., MAML, ICML 2017, Eq. (1).

    Args:
        model: The student.
        loss: ``loss(forward) -> scalar``, where ``forward(*inputs)`` runs the model with the
            current parameters.
        lr: Step size; a tensor may require a gradient.
        steps: Number of steps, at least 1.
        parameters: Where to start, by name; by default the trainable parameters, detached, or all
            where none is trainable, as in a turn that trains something else.
        create_graph: Second derivatives; without them (first order) the slopes are constants.

    Returns:
        The parameters by name, for ``torch.func.functional_call``.

    Raises:
        ConfigError: Less than one step.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> scale = torch.tensor(2.0, requires_grad=True)
        >>> moved = unrolled(model, lambda f: scale * f(torch.ones(1, 1)).square().sum(), lr=0.1)
        >>> round(float(moved["weight"].detach()), 4)  # 1 - 0.1 * 2 * 2
        0.6
        >>> moved["weight"].sum().backward()
        >>> round(float(scale.grad), 4)
        -0.2
    """
    if steps < 1:
        raise ConfigError(f"unrolled: steps must be at least 1, got {steps}")
    if parameters is None:
        named = dict(model.named_parameters())
        free = {name: value for name, value in named.items() if value.requires_grad}
        theta = {name: value.detach().requires_grad_() for name, value in (free or named).items()}
    else:
        theta = {n: v if v.requires_grad else v.detach().requires_grad_()
                 for n, v in parameters.items()}  # fmt: skip
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    for _ in range(steps):
        now = {**theta, **buffers}
        value = loss(lambda *inputs, now=now: functional_call(model, now, inputs))
        slopes = torch.autograd.grad(value, list(theta.values()), create_graph=create_graph)
        theta = {
            name: before - lr * slope
            for (name, before), slope in zip(theta.items(), slopes, strict=True)
        }
    return theta
