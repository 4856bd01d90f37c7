"""Weights after steps of training on synthetic images, and their gradient in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["flat", "named", "rollout"]

Loss = Callable[[Tensor, int, Tensor, Tensor | None], Tensor]


def rollout(
    loss: Loss,
    theta: Float[Tensor, " weights"],
    images: Tensor,
    targets: Tensor | None,
    lr: Tensor,
    steps: int,
    *,
    exact: bool = True,
) -> Float[Tensor, " weights"]:
    """Weights after ``steps`` of gradient descent, differentiable in images, targets and rate.

    ``theta_{i+1} = theta_i - lr grad_theta loss(theta_i, i, images, targets)``. No step's graph is
    kept: with ``exact`` the weights before each step are, and the adjoint
    ``a_i = a_{i+1} - lr H_i a_{i+1}`` goes backwards through them. Without, the adjoint stays that
    of the end (H = 0) and the second pass goes forwards, so memory does not grow with ``steps``: an
    approximation, which leaves out how later slopes depend on earlier images.

    Source: Maclaurin et al., ICML 2015 (exact); Cui et al., Scaling Up Dataset Distillation to
    ImageNet-1K with Constant Memory (TESLA), ICML 2023, Eqs. (5) to (9) (else).

    Args:
        loss: ``loss(theta, i, images, targets)``, a scalar that is the same whenever it is asked.
        theta: Where the weights start; no gradient reaches it.
        images: Synthetic images.
        targets: Soft labels, or None.
        lr: Learning rate, a scalar tensor.
        steps: Number of steps.
        exact: Whole gradient.
    """
    found: Tensor = _Rollout.apply(loss, theta, images, targets, lr, steps, exact)
    return found


class _Rollout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Loss, theta: Tensor, images: Tensor, targets: Tensor | None, lr: Tensor,
        steps: int, exact: bool,
    ) -> Tensor:  # fmt: skip
        ctx.loss, ctx.steps, ctx.exact = loss, steps, exact
        rate, path = lr.detach(), [theta.detach()]
        now = path[0]
        fixed = images.detach(), None if targets is None else targets.detach()
        for step in range(steps):
            now = now - rate * _slope(loss, now, step, *fixed)
            if exact and step + 1 < steps:
                path.append(now)
        ctx.path = path
        ctx.save_for_backward(images, lr, *(() if targets is None else (targets,)))
        return now

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> Any:
        images, lr, *rest = (saved.detach() for saved in ctx.saved_tensors)
        inputs = [images, *rest]
        sums = [torch.zeros_like(each) for each in inputs]
        slope_of_rate, now = torch.zeros_like(lr), ctx.path[0]
        for step in reversed(range(ctx.steps)) if ctx.exact else range(ctx.steps):
            now = (ctx.path[step] if ctx.exact else now).detach().requires_grad_()
            wanted = [each.detach().requires_grad_() for each in inputs]
            slope = _slope(ctx.loss, now, step, *_pair(wanted), graph=True)
            with torch.enable_grad():
                along = torch.dot(slope, adjoint)
            turn, *slopes = torch.autograd.grad(along, [now, *wanted], allow_unused=True)
            slope_of_rate -= along.detach()
            for total, each in zip(sums, slopes, strict=True):
                if each is not None:
                    total.sub_(lr * each)
            if not ctx.exact:
                now = now - lr * slope.detach()
            elif turn is not None:
                adjoint = adjoint - lr * turn
        of_targets = sums[1] if rest else None
        return None, None, sums[0], of_targets, slope_of_rate, None, None


def _slope(
    loss: Loss, theta: Tensor, step: int, images: Tensor, targets: Tensor | None,
    graph: bool = False,
) -> Tensor:  # fmt: skip
    """Gradient of the loss in the weights, itself differentiable where ``graph``."""
    with torch.enable_grad():
        theta = theta if theta.requires_grad else theta.detach().requires_grad_()
        value = loss(theta, step, images, targets)
        (slope,) = torch.autograd.grad(value, theta, create_graph=graph)
    return slope


def _pair(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    return inputs[0], inputs[1] if len(inputs) > 1 else None


def flat(model: nn.Module) -> Float[Tensor, " weights"]:
    """All parameters of a model in one vector, detached."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def named(model: nn.Module, theta: Float[Tensor, " weights"]) -> dict[str, Tensor]:
    """A vector of weights as the parameters of a model by name, for ``functional_call``."""
    sizes = [(name, parameter.shape) for name, parameter in model.named_parameters()]
    parts = theta.split([shape.numel() for _, shape in sizes])
    return {name: part.view(shape) for (name, shape), part in zip(sizes, parts, strict=True)}


def run_with(model: nn.Module, theta: Tensor, x: Tensor) -> Tensor:
    """Output of a model with the weights of a vector."""
    found: Tensor = functional_call(model, named(model, theta), (x,))
    return found
