"""Learners from a dense module's own weights: no training, and exact when all of them run."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn

from potstill.acm.layers.module import ACM

__all__ = ["Units", "importance", "split_linear", "split_mlp"]


class Units(NamedTuple):
    """The hidden units of a dense MLP.

    Attributes:
        up: Weights to them, [hidden in].
        bias: Their biases.
        lift: Weights of the factor that multiplies them in a gated MLP.
        offset: Bias of that factor.
    """

    up: Tensor
    bias: Tensor | None
    lift: Tensor | None = None
    offset: Tensor | None = None

    @classmethod
    def of(cls, mlp: Any) -> Units:
        """Those of timm's ``Mlp``, ``SwiGLU`` or ``GluMlp``."""
        if isinstance(mlp, SwiGLU):
            return cls(mlp.fc1_g.weight, mlp.fc1_g.bias, mlp.fc1_x.weight, mlp.fc1_x.bias)
        if not isinstance(mlp, GluMlp):
            return cls(mlp.fc1.weight, mlp.fc1.bias)
        halves = mlp.fc1.weight.chunk(2)
        biases = (None, None) if mlp.fc1.bias is None else mlp.fc1.bias.chunk(2)
        gate, factor = (1, 0) if mlp.gate_last else (0, 1)
        return cls(halves[gate], biases[gate], halves[factor], biases[factor])


def importance(units: Units, fc2: nn.Linear) -> Float[Tensor, " hidden"]:
    """How much a hidden unit can move the output: the norm of its weights in times out."""
    incoming = units.up.detach().norm(dim=1)
    if units.lift is not None:
        incoming = incoming * units.lift.detach().norm(dim=1)
    return incoming * fc2.weight.detach().norm(dim=0)


@torch.no_grad()
def split_mlp(acm: ACM, mlp: Any) -> None:
    """Give the hidden units of a dense MLP to the learners, the most important ones first.

    With as many units as the MLP all learners together equal it. With fewer the least important
    units are left out; with more the additional ones start without effect.

    Args:
        acm: Module of the same width; gated where ``mlp`` is.
        mlp: timm's ``Mlp``, ``SwiGLU`` or ``GluMlp``.
    """
    units = Units.of(mlp)
    hidden = min(len(acm.up), len(units.up))
    order = importance(units, mlp.fc2).argsort(descending=True, stable=True)[:hidden]
    acm.down[:hidden] = mlp.fc2.weight.t()[order]
    acm.down[hidden:] = 0.0
    for mine, theirs in zip((acm.up, acm.bias, acm.lift, acm.offset), units, strict=True):
        if mine is not None and theirs is not None:
            mine[:hidden] = theirs[order]
    for bias, theirs in ((acm.bias, units.bias), (acm.offset, units.offset)):
        if bias is not None and theirs is None:
            bias.zero_()
        elif bias is not None:
            bias[hidden:] = 0.0
    acm.shift.zero_()
    if mlp.fc2.bias is not None:
        acm.shift.copy_(mlp.fc2.bias)


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
