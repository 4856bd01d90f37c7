"""Criteria of GNN-to-MLP distillation: what a student without edges can learn from one with.

All are called ``(z_s, z_t, edge_index, edge_weight)`` with logits [N C] and edges [2 E] from source
(row 0) to target (row 1). What depends on the teacher and the graph alone is computed once, as
long as the same tensors come again; what is left of the low-frequency term needs no edges at all.
Values are means in nats, the teacher gets no gradient, and a temperature brings no ``tau^2``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from potstill.core import ConfigError, Mean, ShapeError
from potstill.graph.data.check import check_ends, is_symmetric
from potstill.graph.data.tensors import Memo, compress
from potstill.graph.kernels import CONTRASTS
from potstill.graph.kernels.contrast import Contrast
from potstill.graph.kernels.edges import contrast
from potstill.graph.kernels.product import product

__all__ = ["HighFrequency", "LowFrequency", "MatchValues", "SoftLabel", "match_rows"]

Reduction = Literal["edge", "node"]


class _Target(NamedTuple):
    """A distribution for each row, scaled by the weight of the row, and the entropy it brings."""

    scaled: Tensor  # [N C]
    weight: Tensor  # [N], the row sums of `scaled`
    constant: Tensor  # what makes cross-entropy a divergence

    def to(self, kind: torch.dtype) -> _Target:
        """In the type of the student, once and not in every step."""
        return _Target(*(part.to(kind) for part in self))


class _CrossEntropy(torch.autograd.Function):
    """``-sum(target * log_softmax(z))``, with the gradient made in the same pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        log_q = torch.log_softmax(z, 1)
        value = -(target * log_q).sum()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(log_q.exp_().mul_(weight[:, None]).sub_(target))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None


def _match(z_s: Tensor, target: _Target) -> Tensor:
    value: Tensor = _CrossEntropy.apply(_at_least_single(z_s), target.scaled, target.weight)
    return value + target.constant


def match_rows(
    z_s: Float[Tensor, "nodes classes"],
    target: Float[Tensor, "nodes classes"],
    entropy: Float[Tensor, " nodes"],
) -> Float[Tensor, ""]:
    """``sum_i (entropy[i] - <target[i], log softmax(z_s[i])>)``: divergence from scaled targets.

    What `LowFrequency` is once the graph is summed into a target for each node; takes any subset
    of the nodes.

    Args:
        z_s: Logits.
        target: Distributions, scaled by the share of the node in the mean.
        entropy: ``sum_c p log p`` of what went into the target, scaled alike.
    """
    return _match(z_s, _Target(target, target.sum(1), entropy.sum()).to(_kind(z_s)))


class SoftLabel(nn.Module):
    """Match the teacher's class distribution at every node.

    Source: Zhang et al., "Graph-less Neural Networks" (GLNN), ICLR 2022, Eq. (1).
    ``L = mean_i KL(softmax(z_t[i]) || softmax(z_s[i]))``.

    Call:
        z_s, z_t: logits [N C]; edges are accepted and ignored.

    Returns:
        Scalar, nats per node.

    Raises:
        ShapeError: ``z_s`` and ``z_t`` differ in shape.

    Example:
        >>> z = torch.tensor([[0.0, 1.0]])
        >>> float(SoftLabel()(z, z)) == 0.0
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self._memo = Memo()

    def forward(
        self,
        z_s: Float[Tensor, "nodes classes"],
        z_t: Float[Tensor, "nodes classes"],
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """See the class."""
        _check("SoftLabel", z_s, z_t)
        return _match(z_s, self._memo(_soft_target, z_t, _kind(z_s)))


class MatchValues(nn.Module):
    """What `SoftLabel` is where the outputs are several labels, values or embeddings.

    Source: Zhang et al. (GLNN), ICLR 2022, Eq. (1), for other outputs than one distribution: for
    labels ``L = mean_ic KL(Bernoulli(sigmoid(z_t)) || Bernoulli(sigmoid(z_s)))``, for values
    ``L = mean_ic (z_t - z_s)^2``.

    Args:
        task: ``"labels"`` or ``"values"``.

    Call:
        z_s, z_t: [N C]; edges are accepted and ignored.

    Returns:
        Scalar, nats (squared units) per node and output.

    Raises:
        ShapeError: ``z_s`` and ``z_t`` differ in shape.
        ConfigError: Another ``task``.

    Example:
        >>> z = torch.tensor([[0.0, 1.0]])
        >>> float(MatchValues("values")(z, z + 2, None)), float(MatchValues("labels")(z, z))
        (4.0, 0.0)
    """

    def __init__(self, task: Literal["labels", "values"]) -> None:
        super().__init__()
        if task not in ("labels", "values"):
            raise ConfigError(f"MatchValues: task must be labels or values, got {task!r}")
        self.task = task

    def forward(
        self,
        z_s: Float[Tensor, "nodes outputs"],
        z_t: Float[Tensor, "nodes outputs"],
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """See the class."""
        _check("MatchValues", z_s, z_t)
        z_s, z_t = _at_least_single(z_s), z_t.detach().to(_kind(z_s))
        if self.task == "values":
            return F.mse_loss(z_s, z_t)
        p = z_t.sigmoid()
        own = F.binary_cross_entropy_with_logits(z_t, p)
        return F.binary_cross_entropy_with_logits(z_s, p) - own


class LowFrequency(nn.Module):
    """Match what the teacher says about the neighbours of a node, and about itself.

    Source: Wu et al., "Extracting Low-/High-Frequency Knowledge from Graph Neural Networks and
    Injecting it into MLPs" (FF-G2M), AAAI 2023, low-frequency distillation.
    ``L = mean_e KL(softmax(z_t[source]) || softmax(z_s[target]))`` over all edges and one self-loop
    a node, computed exactly as a cross-entropy with a fixed target for each node.

    Args:
        reduction: ``"edge"``, the mean over edges (FF-G2M), in which hubs count by their degree;
            or ``"node"``, the mean over the neighbours of each node, then over nodes.

    Call:
        z_s, z_t: logits [N C]; edge_index: [2 E] integers without self-loops; edge_weight: [E] or
        None, self-loops weigh 1.

    Returns:
        Scalar, nats per edge (per node).

    Raises:
        ShapeError: ``z_s`` and ``z_t`` differ in shape, or edges and weights do.
        DataError: An edge to a node that is not there.
        ConfigError: An unknown reduction.

    Example:
        >>> z_t = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> alone, linked = torch.empty(2, 0, dtype=torch.long), torch.tensor([[0, 1], [1, 0]])
        >>> low = LowFrequency()
        >>> float(low(z_t, z_t, alone)) < 1e-6, float(low(z_t, z_t, linked)) > 0.7
        (True, True)
    """

    def __init__(self, reduction: Reduction = "edge") -> None:
        super().__init__()
        self.reduction = _check_reduction("LowFrequency", reduction)
        self._memo, self._items = Memo(), Memo()

    def forward(
        self,
        z_s: Float[Tensor, "nodes classes"],
        z_t: Float[Tensor, "nodes classes"],
        edge_index: Integer[Tensor, "2 edges"],
        edge_weight: Float[Tensor, " edges"] | None = None,
    ) -> Float[Tensor, ""]:
        """See the class."""
        _check("LowFrequency", z_s, z_t)
        given = (z_t, edge_index, edge_weight, self.reduction, _kind(z_s))
        value = _match(z_s, self._memo(_low_target, *given))
        if self.reduction == "node":
            return value  # a mean over the rows
        edges = self._items(_items, z_t, edge_index, edge_weight, self.reduction)
        return Mean.known(value, edges + len(z_s))  # and the self-loops


class HighFrequency(nn.Module):
    """Match how the teacher's logits differ along edges.

    Source: Wu et al. (FF-G2M), AAAI 2023, high-frequency distillation.
    ``L = mean_e KL(softmax(|z_t[i] - z_t[j]| / tau) || softmax(|z_s[i] - z_s[j]| / tau))`` over
    edges without self-loops; no tau^2 factor. Where every edge has both directions only one is
    computed, which changes nothing.

    Args:
        tau: Temperature > 0, unitless.
        reduction: ``"edge"``, the mean over edges (FF-G2M), or ``"node"``, the mean over the edges
            into each node, then over nodes that have any.
        backend: ``"torch"``; ``"native"``, a C++ kernel that the machine's compiler builds on first
            use (CPU); ``"triton"`` (CUDA); ``"auto"`` takes the fastest that runs where the logits
            are.
        edge_chunk: Edges at a time; bounds the memory of ``"torch"``.
        symmetric: True where every edge has both directions; found out when None.

    Call:
        z_s, z_t: logits [N C]; edge_index: [2 E] integers without self-loops; edge_weight: [E] or
        None.

    Returns:
        Scalar, nats per edge; zero without edges.

    Raises:
        ShapeError: ``z_s`` and ``z_t`` differ in shape, or edges and weights do.
        DataError: An edge to a node that is not there.
        ConfigError: ``tau`` <= 0, ``edge_chunk`` < 1, or an unknown option.
        BackendError: The backend cannot run here; says what to install.

    Example:
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> z_t = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> high = HighFrequency(backend="torch")
        >>> float(high(z_t + 5, z_t, edges)), float(high(0 * z_t, z_t, edges)) > 0.1
        (0.0, True)
    """

    def __init__(
        self,
        tau: float = 1.0,
        reduction: Reduction = "edge",
        backend: str = "auto",
        edge_chunk: int = 2**20,
        symmetric: bool | None = None,
    ) -> None:
        super().__init__()
        if not 0 < tau < float("inf"):
            raise ConfigError(f"HighFrequency: tau must be a finite number > 0, got {tau}")
        if edge_chunk < 1:
            raise ConfigError(f"HighFrequency: edge_chunk must be at least 1, got {edge_chunk}")
        self.tau, self.edge_chunk, self.symmetric = tau, edge_chunk, symmetric
        self.reduction = _check_reduction("HighFrequency", reduction)
        if backend != "auto":
            CONTRASTS.resolve(backend)  # one that cannot run says so before anything starts
        self.backend = backend
        self._memo, self._items = Memo(), Memo()

    def forward(
        self,
        z_s: Float[Tensor, "nodes classes"],
        z_t: Float[Tensor, "nodes classes"],
        edge_index: Integer[Tensor, "2 edges"],
        edge_weight: Float[Tensor, " edges"] | None = None,
    ) -> Float[Tensor, ""]:
        """See the class."""
        _check("HighFrequency", z_s, z_t)
        made: Contrast = self._memo(self._prepare, z_t, edge_index, edge_weight, _kind(z_s))
        items = self._items(_items, z_t, edge_index, edge_weight, self.reduction)
        return Mean.known(contrast(z_s, made, self.backend), items)

    def _prepare(
        self, z_t: Tensor, edge_index: Tensor, edge_weight: Tensor | None, kind: torch.dtype
    ) -> Contrast:
        count, z_t = len(z_t), z_t.to(kind)
        edge_index = check_ends(edge_index, count, "HighFrequency")
        source, target = edge_index
        weight = _weights("HighFrequency", edge_index, edge_weight, z_t)
        share = _shares(target, weight, count, self.reduction)
        factor = weight * share[target]
        symmetric = self.symmetric
        if symmetric is None:
            symmetric = is_symmetric(edge_index, count, edge_weight)
        if symmetric:
            half = source < target
            factor = (factor + weight * share[source])[half]
            source, target = source[half], target[half]
        return Contrast.make(z_t, source, target, factor, self.tau, self.edge_chunk)

    def extra_repr(self) -> str:
        """Options, for ``print``."""
        return f"tau={self.tau}, reduction={self.reduction!r}, backend={self.backend!r}"


@torch.no_grad()
def _soft_target(z_t: Tensor, kind: torch.dtype) -> _Target:
    z_t = _at_least_single(z_t)
    p = torch.softmax(z_t, 1) / len(z_t)
    constant = (p * torch.log_softmax(z_t, 1)).sum()
    return _Target(p, p.new_full((len(p),), 1 / len(p)), constant).to(kind)


@torch.no_grad()
def _low_target(
    z_t: Tensor,
    edge_index: Tensor,
    edge_weight: Tensor | None,
    reduction: Reduction,
    kind: torch.dtype,
) -> _Target:
    """``T[i] = sum_j a[i, j] softmax(z_t[j])``, where a are the shares of the edges in the mean."""
    count, z_t = len(z_t), _at_least_single(z_t)
    edge_index = check_ends(edge_index, count, "LowFrequency")
    weight = _weights("LowFrequency", edge_index, edge_weight, z_t)
    nodes = torch.arange(count, device=z_t.device)
    source, target = torch.cat([edge_index, nodes.expand(2, -1)], 1)
    weight = torch.cat([weight, weight.new_ones(count)])
    share = weight * _shares(target, weight, count, reduction)[target]
    p = torch.softmax(z_t, 1)
    scaled = product(compress(target, source, share, (count, count)), p)
    entropy = (p * torch.log_softmax(z_t, 1)).sum(1)
    row = torch.zeros_like(entropy).index_add_(0, target, share)
    return _Target(scaled, row, (share * entropy[source]).sum()).to(kind)


@torch.no_grad()
def _items(
    z_t: Tensor, edge_index: Tensor, edge_weight: Tensor | None, reduction: Reduction
) -> Tensor:
    """What a mean is over: the weight of the edges, or the nodes that have edges."""
    weight = torch.ones_like(edge_index[1]) if edge_weight is None else edge_weight
    into = weight.new_zeros(len(z_t)).index_add_(0, edge_index[1], weight)
    return into.sum() if reduction == "edge" else (into > 0).sum()


def _shares(target: Tensor, weight: Tensor, count: int, reduction: Reduction) -> Tensor:
    """What the weight of an edge is multiplied by in the mean, for each target node [N]."""
    into = torch.zeros(count, device=weight.device, dtype=weight.dtype)
    into.index_add_(0, target, weight)
    if reduction == "edge":
        return torch.full_like(into, 1.0) / into.sum().clamp_min(torch.finfo(into.dtype).tiny)
    linked = into > 0
    return torch.where(linked, 1 / into.where(linked, 1) / linked.sum().clamp_min(1), 0)


def _kind(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _at_least_single(z: Tensor) -> Tensor:
    return z.to(_kind(z))


def _weights(name: str, edge_index: Tensor, edge_weight: Tensor | None, like: Tensor) -> Tensor:
    edges = edge_index.shape[1]
    if edge_weight is None:
        return torch.ones(edges, dtype=like.dtype, device=like.device)
    if edge_weight.shape != (edges,):
        raise ShapeError(
            f"{name}: edge_weight must be [{edges}], one for each edge, got "
            f"{list(edge_weight.shape)}"
        )
    return edge_weight.to(like.dtype)


def _check(name: str, z_s: Tensor, z_t: Tensor) -> None:
    if z_t is None:
        raise ShapeError(f"{name}: z_t must be the teacher's logits [N, C], got None")
    if z_s.shape != z_t.shape or z_s.ndim != 2:
        raise ShapeError(
            f"{name}: z_t must be {list(z_s.shape)} like z_s, got {list(z_t.shape)}; was the "
            "teacher run on other nodes or labels?"
        )


def _check_reduction(name: str, reduction: str) -> Any:
    if reduction not in ("edge", "node"):
        raise ConfigError(f"{name}: reduction must be edge or node, got {reduction!r}")
    return reduction
