"""Learners from a dense module's own weights: no training, and exact when all of them run."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from potstill.acm.layers.module import ACM

__all__ = ["importance", "split_linear", "split_mlp"]


def importance(fc1: nn.Linear, fc2: nn.Linear) -> Float[Tensor, " hidden"]:
    """How much a hidden unit can move the output: the norm of its weights in times out."""
    incoming = fc1.weight.detach().norm(dim=1)
    return incoming * fc2.weight.detach().norm(dim=0)


@torch.no_grad()
def split_mlp(acm: ACM, fc1: nn.Linear, fc2: nn.Linear) -> None:
    """Give the hidden units of a dense MLP to the learners, the most important ones first.

    With as many units as the MLP all learners together equal it. With fewer the least important
    units are left out; with more the additional ones start without effect.
    """
    hidden = min(len(acm.up), fc1.out_features)
    order = importance(fc1, fc2).argsort(descending=True, stable=True)[:hidden]
    acm.up[:hidden] = fc1.weight[order]
    acm.down[:hidden] = fc2.weight.t()[order]
    acm.down[hidden:] = 0.0
    acm.bias.zero_()
    if fc1.bias is not None:
        acm.bias[:hidden] = fc1.bias[order]
    acm.shift.zero_()
    if fc2.bias is not None:
        acm.shift.copy_(fc2.bias)


@torch.no_grad()
def split_linear(acm: ACM, linear: nn.Linear, rows: slice = slice(None)) -> None:
    """Give the singular directions of a linear map to identity learners, the largest first.

    The first k learners are then the best approximation of their rank (Eckart and Young 1936).

    Args:
        acm: Module with the activation ``"identity"``.
        linear: The dense map.
        rows: Part of its outputs, e.g. a third of a fused qkv.
    """
    weight = linear.weight[rows]
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    rank = min(len(acm.up), len(values))
    root = values[:rank].sqrt()
    acm.up[:rank] = (root[:, None] * right[:rank]).to(weight.dtype)
    acm.down[:rank] = (root[:, None] * left[:, :rank].t()).to(weight.dtype)
    acm.down[rank:] = 0.0
    acm.bias.zero_()
    acm.shift.zero_()
    if linear.bias is not None:
        acm.shift.copy_(linear.bias[rows])
