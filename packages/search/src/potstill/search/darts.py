"""Differentiable search with the supernet's own past as a teacher: weights and choices in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Adam

from potstill.core import ConfigError, Losses, Objective, Stage, Turn
from potstill.core.criteria import kd
from potstill.core.schemes import SnapshotDistiller

__all__ = ["Cell", "Darts", "Mixed", "curvature", "discretize", "operations", "two_turns"]


class Mixed(nn.Module):
    """One of several operations, all of them weighted while the choice is open.

    Source: Liu, Simonyan and Yang, DARTS, ICLR 2019, Eq. (2): ``sum_o softmax(alpha)_o o(x)``.

    Args:
        choices: Operations by name, with outputs of one shape.
    """

    def __init__(self, choices: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.choices = nn.ModuleDict(choices)
        self.alpha = nn.Parameter(1e-3 * torch.randn(len(choices)))

    def forward(self, x: Tensor) -> Tensor:
        """The weighted sum."""
        weights = self.alpha.softmax(0)
        parts = zip(weights, self.choices.values(), strict=True)
        return torch.stack([weight * choice(x) for weight, choice in parts]).sum(0)

    @property
    def chosen(self) -> str:
        """Name of the operation with the largest weight."""
        return list(self.choices)[int(self.alpha.argmax())]


def operations(channels: int) -> dict[str, nn.Module]:
    """The five operations of NAS-Bench-201 on maps of ``channels``.

    Source: Dong and Yang, ICLR 2020, section 2.1.
    """

    def conv(side: int) -> nn.Module:
        inner = nn.Conv2d(channels, channels, side, 1, side // 2, bias=False)
        return nn.Sequential(nn.ReLU(), inner, nn.BatchNorm2d(channels))

    return {"none": _Zero(), "skip": nn.Identity(), "conv1": conv(1), "conv3": conv(3),
            "pool": nn.AvgPool2d(3, 1, 1, count_include_pad=False)}  # fmt: skip


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Cell(nn.Module):
    """A cell of NAS-Bench-201: nodes that sum the edges from all nodes before them.

    Args:
        channels: Channels of the maps.
        nodes: Nodes, the input included; 4 have 6 edges.
        make: Operations of an edge.
    """

    def __init__(
        self, channels: int, nodes: int = 4,
        make: Callable[[int], Mapping[str, nn.Module]] = operations,
    ) -> None:  # fmt: skip
        super().__init__()
        self.edges = nn.ModuleDict(
            {f"{i}-{j}": Mixed(make(channels)) for j in range(1, nodes) for i in range(j)}
        )
        self.nodes = nodes

    def forward(
        self, x: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch channels h w"]:
        """The maps of the last node."""
        states = [x]
        for j in range(1, self.nodes):
            parts = [self.edges[f"{i}-{j}"](states[i]) for i in range(j)]
            states.append(torch.stack(parts).sum(0))
        return states[-1]


class Darts(SnapshotDistiller):
    """Weights and choices in turns, each with its own half of the data.

    Source: DARTS in first order, with the self-distillation of SD-DARTS (arXiv 2302.05629): a
    second term to the vote of earlier supernets. How many snapshots, how far apart, how they vote
    and the weight of the term are not in what could be read of the paper, so they are yours. With
    the last step as the only snapshot the term is a proximal one, zero at the snapshot itself.

    Terms: ``task``, and ``kd`` where ``distil`` is positive. A batch is two batches of (images,
    labels): the turn ``weights`` takes the first, the turn ``choices`` the second. Train with
    ``stages=[two_turns()]``.

    Args:
        student: A network with `Mixed` modules.
        distil: Weight of the term to the snapshots.
        k: As in `potstill.core.schemes.Snapshots`.
        every: As there.
        vote: As there.

    Raises:
        ConfigError: No `Mixed` module.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        distil: float = 0.0,
        k: int = 3,
        every: int = 50,
        vote: Literal["mean", "majority"] = "mean",
    ) -> None:
        if not mixed(student):
            raise ConfigError(
                f"Darts: student must have Mixed modules, got {type(student).__name__}"
            )
        terms: dict[str, Any] = {"task": (1.0, F.cross_entropy)}
        terms |= {"kd": (distil, kd)} if distil else {}
        super().__init__(student, Objective(terms), k=k, every=every, vote=vote)

    def forward(self, batch: Sequence[Any], step: int) -> Losses:
        """Terms of the batch whose turn it is."""
        return super().forward(batch[self.turn == "choices"], step)

    def reference(self, x: Any, step: int) -> Tensor:
        """The vote; snapshots are taken before the weights move."""
        if self.turn != "choices":
            self.snapshots.update(self.student, step)
        return self.snapshots(x)


def two_turns(lr: float = 3e-4, weights: float = 0.025, *, share: float = 1.0) -> Stage:
    """The stage of a differentiable search: SGD for weights, Adam for choices.

    Args:
        lr: Learning rate of the choices.
        weights: Learning rate of the weights.
        share: Share of the training.
    """
    sgd = partial(SGD, momentum=0.9, weight_decay=3e-4)
    adam = partial(Adam, betas=(0.5, 0.999), weight_decay=1e-3)
    return Stage(share=share, turns=(
        Turn("weights", _is_weight, optimizer=sgd, lr=weights),
        Turn("choices", _is_choice, optimizer=adam, lr=lr),
    ))  # fmt: skip


def _is_choice(name: str) -> bool:
    return name.startswith("student.") and name.endswith(".alpha")


def _is_weight(name: str) -> bool:
    return name.startswith("student.") and not name.endswith(".alpha")


def mixed(model: nn.Module) -> dict[str, Mixed]:
    """The open choices of a network by path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mixed)}


def discretize(model: nn.Module) -> nn.Module:
    """A copy in which each choice is the operation with the largest weight, weights inherited."""
    model = copy.deepcopy(model)
    for name, module in mixed(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module.choices[module.chosen])
    return model


def curvature(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], *, iterations: int = 100, seed: int = 0
) -> float:
    """The eigenvalue of largest size of the Hessian of a loss with respect to the choices.

    Source: Zela et al., Understanding and Robustifying Differentiable Architecture Search, ICLR
    2020, for its use; power iteration on products of Hessian and vector.

    Args:
        model: A network with `Mixed` modules, in the mode in which it is judged.
        loss: ``loss(model)``, on held-out data.
        iterations: Steps of the iteration.
        seed: Seed of its start.
    """
    alphas = [module.alpha for module in mixed(model).values()]
    slopes = torch.autograd.grad(loss(model), alphas, create_graph=True)
    flat = torch.cat([slope.flatten() for slope in slopes])
    start = torch.Generator().manual_seed(seed)
    v = torch.randn(len(flat), generator=start, dtype=flat.dtype).to(flat.device)
    value = 0.0
    for _ in range(iterations):
        v = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
        parts = torch.autograd.grad(flat @ v, alphas, retain_graph=True)
        product = torch.cat([part.flatten() for part in parts])
        value, v = float(v @ product), product
    return value
