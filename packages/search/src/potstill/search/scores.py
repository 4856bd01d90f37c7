"""Scores of untrained students: functions of (student, batch, teacher); larger is better.

On every table of distilled accuracies that was looked at, the number of parameters ranks students
better than any of the others; they are here to be compared with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from potstill.core import ConfigError, ShapeError, count_macs, count_parameters
from potstill.core.criteria import sp

__all__ = [
    "SCORES", "diswot", "diswot_relation", "diswot_semantic", "initialise", "jacob_cov", "macs",
    "naswot", "noise", "parameters", "synflow",
]  # fmt: skip

Batch = tuple[Tensor, Tensor]
"""Inputs and labels."""

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Hardswish)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameters(student: nn.Module, batch: Batch | None = None, teacher: Any = None) -> float:
    """Number of parameters: the score to beat."""
    return float(count_parameters(student))


def macs(student: nn.Module, batch: Batch, teacher: Any = None) -> float:
    """Multiply-adds for the first input of the batch."""
    return float(count_macs(student, batch[0][:1]))


def noise(student: nn.Module, batch: Batch | None = None, teacher: Any = None) -> float:
    """A random number of torch's global stream: the score that says nothing."""
    return float(torch.rand(()))


def synflow(student: nn.Module, batch: Batch, teacher: Any = None) -> float:
    """How much flows through the absolute weights: ``log sum |theta dR/dtheta|``.

    Source: Tanaka et al., NeurIPS 2020, Eq. (1), as a score of networks: Abdelfattah et al., ICLR
    2021. R is the sum of the outputs for an input of ones, in float64; normalisation is skipped.
    """
    net = copy.deepcopy(student).double().eval()
    for parameter in net.parameters():
        parameter.data.abs_()
    with _hooks(net, _NORMS, lambda module, x, _: getattr(module, "act", nn.Identity())(x[0])):
        total = net(torch.ones_like(batch[0][:1], dtype=torch.float64)).sum()
    weights = [p for p in net.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    flows = [(w * g).abs().sum() for w, g in zip(weights, gradients, strict=True) if g is not None]
    return float(torch.stack(flows).sum().detach().log())


def naswot(student: nn.Module, batch: Batch, teacher: Any = None) -> float:
    """How differently the units see the items: ``log det K``, ``K_nm = units - Hamming distance``.

    Source: Mellor et al., ICML 2021, Eq. (2). The codes are the signs of what goes into every
    activation, batch norm in training mode. Minus infinity where two items have one code.

    Raises:
        ConfigError: No activation is a module.
    """
    net, kernels = copy.deepcopy(student).train(), []

    def collect(_: nn.Module, x: tuple[Tensor, ...]) -> None:
        code = (x[0] > 0).flatten(1).double()
        kernels.append(code @ code.mT + (1 - code) @ (1 - code).mT)

    handles = [m.register_forward_pre_hook(collect) for m in _of(net, _ACTIVATIONS)]
    with torch.no_grad():
        net(batch[0])
    for handle in handles:
        handle.remove()
    if not kernels:
        raise ConfigError(
            "naswot: student must have activations as modules (nn.ReLU, nn.GELU), got none; the "
            "scores parameters, macs, synflow and jacob_cov remain"
        )
    return float(torch.linalg.slogdet(torch.stack(kernels).sum(0)).logabsdet)


def jacob_cov(student: nn.Module, batch: Batch, teacher: Any = None) -> float:
    """How uncorrelated the input Jacobians of the items are.

    Source: Mellor et al., arXiv 2006.04647v1: ``-sum_i log(v_i + k) + 1 / (v_i + k)``, v the
    eigenvalues of the correlation of the Jacobians (gradient of the sum of outputs), k = 1e-5.
    """
    net, x = copy.deepcopy(student).train(), batch[0].clone().requires_grad_()
    (jacobian,) = torch.autograd.grad(net(x).sum(), x)
    values = torch.linalg.eigvalsh(torch.corrcoef(jacobian.flatten(1).double())) + 1e-5
    return float(-(values.log() + 1 / values).sum())


def diswot_relation(student: nn.Module, batch: Batch, teacher: nn.Module) -> float:
    """DisWOT's sample relation alone: minus `potstill.core.criteria.sp` of the untrained features.

    The part of `diswot` that is defined for every pair of widths.
    """
    with torch.no_grad():
        return -float(sp(_features(student, batch[0]), _features(teacher, batch[0])))


def diswot_semantic(student: nn.Module, batch: Batch, teacher: nn.Module) -> float:
    """DisWOT's semantic term alone, between gradients of the classifiers.

    Minus the published difference of Gram matrices, `potstill.core.criteria.ickd` of [K C 1 1], in
    O(K C) for O(K C^2): ``M_s = mean_ci (a_ci^2 + b_ci^2 - 2 a_ci b_ci cos(g_c, h_c))``, with g and
    h the gradients of the cross-entropy with respect to the classifiers' weights, [K C], and ``a_ci
    = g_ci |g_c| / max(|g_ci| |g_c|, 1e-12)``, b likewise of h: signs, but for the floor with which
    rows of a Gram matrix are divided. Where large weights saturate the softmax, that floor decides:
    a class counts as equal when neither network has a gradient for it.

    Raises:
        ShapeError: Classifiers of different shapes.
    """
    g, h = _head_gradient(student, batch), _head_gradient(teacher, batch)
    if g.shape != h.shape:
        raise ShapeError(
            f"diswot: classifiers of student and teacher must have one shape, got {list(g.shape)} "
            f"and {list(h.shape)}; diswot_relation is defined for any, and parameters ranks better"
        )
    return -float(_semantic(g, h))


def _semantic(g: Tensor, h: Tensor) -> Tensor:
    norms = [x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) for x in (g, h)]
    a, b = (
        F.normalize((x * n)[..., None], dim=2)[..., 0] for x, n in zip((g, h), norms, strict=True)
    )
    cosine = (g / norms[0] * (h / norms[1])).sum(1, keepdim=True)
    return (a.square() + b.square() - 2 * a * b * cosine).mean()


def diswot(student: nn.Module, batch: Batch, teacher: nn.Module) -> float:
    """DisWOT: how alike an untrained student and an untrained teacher see a batch.

    Source: Dong, Li and Wei, CVPR 2023, with both terms of the paper: `diswot_relation` +
    `diswot_semantic`. Both models carry fresh weights; `initialise` gives those of the authors'
    script (normal) or of their search (kaiming), which decide the result.

    Two limits of the semantic term: it needs a classifier as wide as the teacher's, and it changes
    when the channels of the student are permuted, which changes nothing in the student. The plain
    sum is mostly this term. `potstill search check` shows what both are worth beside the number of
    parameters.

    Args:
        student: With ``forward_features`` and ``get_classifier``, as timm's models have them.
        batch: Inputs and labels.
        teacher: Likewise.

    Raises:
        ShapeError: Classifiers of different shapes.
        ConfigError: A model without these methods.
    """
    return diswot_relation(student, batch, teacher) + diswot_semantic(student, batch, teacher)


SCORES: Mapping[str, Callable[..., float]] = {
    "parameters": parameters, "macs": macs, "synflow": synflow, "naswot": naswot,
    "jacob_cov": jacob_cov, "diswot": diswot, "diswot_relation": diswot_relation,
    "diswot_semantic": diswot_semantic, "random": noise,
}  # fmt: skip
NEED_TEACHER = frozenset({"diswot", "diswot_relation", "diswot_semantic"})


def initialise(model: nn.Module, kind: Literal["own", "kaiming", "normal"] = "own") -> nn.Module:
    """Draw the weights of linear and convolutional layers anew, in place.

    Args:
        model: Any model.
        kind: ``"own"`` leaves those of the builder; ``"kaiming"`` is He's normal initialisation
            (fan out) for convolutions and torch's own for linear layers, as in the networks of
            DisWOT's authors; ``"normal"`` is N(0, 1) with biases of 0, as in their script.
    """
    for module in _of(model, (nn.Linear, nn.modules.conv._ConvNd)) if kind != "own" else ():
        weight, bias = cast(Any, module).weight, cast(Any, module).bias
        if kind == "normal":
            nn.init.normal_(weight)
            if bias is not None:
                nn.init.zeros_(bias)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
        else:
            nn.init.kaiming_normal_(weight, mode="fan_out")
    return model


def _features(model: nn.Module, x: Tensor) -> Float[Tensor, "batch features"]:
    """What the model has before it pools, with the statistics of the batch."""
    run = getattr(model, "forward_features", None)
    if run is None:
        raise ConfigError(
            f"diswot: models must have forward_features, as timm's have, got {type(model).__name__}"
            "; the scores parameters, macs, synflow, naswot and jacob_cov remain"
        )
    found: Tensor = copy.deepcopy(model).train().forward_features(x)  # type: ignore[operator]
    return found.flatten(1)


def _head_gradient(model: nn.Module, batch: Batch) -> Float[Tensor, "classes features"]:
    (x, y), net = batch, copy.deepcopy(model).train()
    find: Any = getattr(net, "get_classifier", lambda: None)
    head = find()
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"diswot: models must have get_classifier, which gives a linear layer, got "
            f"{type(model).__name__}; the scores parameters, macs, synflow, naswot and jacob_cov "
            "remain"
        )
    (found,) = torch.autograd.grad(F.cross_entropy(net(x), y), head.weight)
    return found


def _of(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, kinds))


@contextmanager
def _hooks(net: nn.Module, kinds: tuple[type[nn.Module], ...], hook: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in _of(net, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
