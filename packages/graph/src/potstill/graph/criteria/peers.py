"""Criteria of other GNN-to-MLP methods, for comparison: KRD and HGMD.

Both choose, anew in every step, which neighbours teach a node, and both are called like the
criteria of `potstill.graph.criteria`. With ``loops`` the node teaches itself too, as one of its
neighbours, which is how both are published; else they are a term beside `SoftLabel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from potstill.core import ConfigError, Mean, ShapeError
from potstill.graph.data.tensors import Memo

__all__ = ["HGMD", "KRD", "entropy", "reliability"]


def entropy(z: Float[Tensor, "nodes classes"]) -> Float[Tensor, " nodes"]:
    """Entropy of the class distribution of each row of logits, in nats."""
    log_p = torch.log_softmax(z, 1)
    return -(log_p.exp() * log_p).sum(1)


@torch.no_grad()
def reliability(
    teacher: Callable[[Tensor], Tensor], x: Tensor, sigma: float = 1.0, draws: int = 1
) -> Float[Tensor, " nodes"]:
    """How much noise on the features moves the teacher's certainty, relative to the worst node.

    Source: Wu et al., "Quantifying the Knowledge in GNNs for Reliable Distillation into MLPs"
    (KRD), ICML 2023, Eq. (4): ``rho_i = |H(t(X + noise))_i - H(t(X))_i| / max``; 0 is reliable.

    Args:
        teacher: Features [N F] to logits [N C], in eval mode.
        x: Dense features.
        sigma: Standard deviation of the noise.
        draws: Noises to average over.
    """
    calm = entropy(teacher(x))
    moved = sum(
        (entropy(teacher(x + sigma * torch.randn_like(x))) - calm).abs() for _ in range(draws)
    )
    moved = torch.as_tensor(moved)
    return moved / moved.max().clamp_min(torch.finfo(moved.dtype).tiny)


class KRD(nn.Module):
    """Learn from the neighbours whose teacher is reliable.

    Source: Wu et al. (KRD), ICML 2023, Eq. (6)-(9). A neighbour j is drawn with probability
    ``1 - rho_j ** a``; ``L = mean over drawn edges of KL(softmax(z_t[j]/T) || softmax(z_s[i]/T))``.
    The power a follows, with momentum, how often student and teacher agree at each level of rho.
    Published: rho of `reliability`, momentum 0.9, loops, all edges in the first 50 steps.

    Args:
        temperature: T > 0.
        rho: Reliability [N] in [0, 1] as of `reliability`; the teacher's entropy, scaled to [0, 1],
            when None.
        power: First value of a.
        momentum: Share of the old a that stays, in [0, 1].
        warmup: Steps in which all edges are taken and a stays.
        loops: Count a node among its own neighbours, always drawn.

    Call:
        z_s, z_t: logits [N C]; edge_index: [2 E]; weights are refused: the method has none.

    Returns:
        Scalar, nats per drawn edge; zero when none is drawn.

    Raises:
        ConfigError: A temperature or power that is not positive, a momentum outside [0, 1], a
            ``warmup`` below 0, or weights of edges.
        ShapeError: ``rho`` is not [N].
    """

    a: Tensor
    calls: Tensor

    def __init__(
        self,
        temperature: float = 1.0,
        rho: Tensor | None = None,
        power: float = 1.0,
        momentum: float = 0.99,
        warmup: int = 0,
        loops: bool = False,
    ) -> None:
        super().__init__()
        if not (temperature > 0 and power > 0 and 0 <= momentum <= 1 and warmup >= 0):
            raise ConfigError(
                "KRD: temperature and power must be > 0, momentum in [0, 1] and warmup >= 0, got "
                f"{temperature}, {power}, {momentum} and {warmup}"
            )
        self.temperature, self.momentum, self.rho = temperature, momentum, rho
        self.warmup, self.loops = warmup, loops
        self.register_buffer("a", torch.tensor(power))
        self.register_buffer("calls", torch.tensor(0))
        self._memo = Memo()

    def forward(
        self,
        z_s: Float[Tensor, "nodes classes"],
        z_t: Float[Tensor, "nodes classes"],
        edge_index: Integer[Tensor, "2 edges"],
        edge_weight: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """See the class."""
        _unweighted("KRD", edge_weight)
        rho = self._memo(_relative_entropy, z_t) if self.rho is None else self.rho.to(z_s.device)
        if rho.shape != (len(z_s),):
            raise ShapeError(f"KRD: rho must be [{len(z_s)}], got {list(rho.shape)}")
        started = self.calls >= self.warmup
        self.calls += 1
        self._follow(rho, z_s.detach().argmax(1) == z_t.argmax(1), started)
        chance = 1 - rho**self.a
        drawn = (torch.rand_like(chance) < chance) | ~started
        edge_index = edge_index[:, drawn[edge_index[0]]]
        if self.loops:
            edge_index = _with_loops(edge_index, len(z_s))
        source, target = edge_index
        if not source.numel():
            return Mean(z_s.sum() * 0.0, torch.zeros((), device=z_s.device))
        log_q = torch.log_softmax(z_s / self.temperature, 1)[target]
        log_p = torch.log_softmax(z_t / self.temperature, 1)[source]
        value = (log_p.exp() * (log_p - log_q)).sum(1).mean()
        return Mean.known(value, torch.full((), len(log_p), device=value.device))

    @torch.no_grad()
    def _follow(self, rho: Tensor, agrees: Tensor, started: Tensor) -> None:
        """Move a towards the power whose curve ``1 - rho ** a`` fits the agreement, bin by bin."""
        level = (rho * _BINS).long().clamp(0, _BINS - 1)
        count = torch.bincount(level, minlength=_BINS)
        share = torch.bincount(level, agrees.to(rho.dtype), _BINS) / count.clamp_min(1)
        centre = (torch.arange(_BINS, device=rho.device) + 0.5) / _BINS
        powers = torch.logspace(-2, 2, 81, device=rho.device)
        misfit = ((1 - centre ** powers[:, None] - share) ** 2 * count).sum(1)
        self.a.lerp_(powers[misfit.argmin()].to(self.a.dtype), (1 - self.momentum) * started)


_BINS = 50


class HGMD(nn.Module):
    """Let hard nodes learn from more of their neighbours, the similar and certain ones first.

    Source: Wu et al., "Teach Harder, Learn Poorer: Rethinking Hard Sample Distillation for
    GNN-to-MLP Knowledge Distillation" (HGMD), CIKM 2024. The teacher of node j joins node i with
    probability ``w = 1 - exp(-alpha cos(p_i, p_j) sqrt(H_t(i) H_s(i)) / H_t(j))``, where p are the
    teacher's distributions and H entropies; no parameters are added.
    ``"weight"``: ``L = sum w KL(p_j || q_i) / sum w`` over the joined edges; ``"mixup"``: the
    target is ``b w p_j + (1 - b w) p_i`` with b from Beta(beta, beta), and the mean is plain.
    Published: mixup with beta 0.25, loops, and alpha from 5 to a hundredth of it in the course of
    the training.

    Args:
        temperature: T > 0, of p and q in the divergence.
        alpha: Eagerness of neighbours to join, > 0.
        mode: ``"weight"`` or ``"mixup"``.
        beta: Parameter of the draws of b, > 0; None for b = 1.
        span: Steps in which alpha falls to a hundredth; None where it stays.
        loops: Count a node among its own neighbours, with w = 1.

    Call:
        z_s, z_t: logits [N C]; edge_index: [2 E]; weights are refused: the method has none.

    Returns:
        Scalar, nats; zero when no neighbour joins.

    Raises:
        ConfigError: A number that is not positive, an unknown mode, or weights of edges.
    """

    calls: Tensor

    def __init__(
        self,
        temperature: float = 1.0,
        alpha: float = 1.0,
        mode: Literal["weight", "mixup"] = "weight",
        beta: float | None = None,
        span: int | None = None,
        loops: bool = False,
    ) -> None:
        super().__init__()
        if (
            not min(temperature, alpha, 1 if beta is None else beta, 1 if span is None else span)
            > 0
        ):
            raise ConfigError(
                "HGMD: temperature, alpha, beta and span must be > 0, got "
                f"{temperature}, {alpha}, {beta} and {span}"
            )
        if mode not in ("weight", "mixup"):
            raise ConfigError(f"HGMD: mode must be weight or mixup, got {mode!r}")
        self.temperature, self.alpha, self.mode = temperature, alpha, mode
        self.beta, self.span, self.loops = beta, span, loops
        self.register_buffer("calls", torch.tensor(0))

    def forward(
        self,
        z_s: Float[Tensor, "nodes classes"],
        z_t: Float[Tensor, "nodes classes"],
        edge_index: Integer[Tensor, "2 edges"],
        edge_weight: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """See the class."""
        _unweighted("HGMD", edge_weight)
        with torch.no_grad():
            w = self.chance(z_s, z_t, edge_index)
            joined = torch.rand_like(w) < w
            edge_index, w = edge_index[:, joined], w[joined]
            self.calls += 1
            if self.loops:
                edge_index = _with_loops(edge_index, len(z_s))
                w = torch.cat([w, w.new_ones(len(z_s))])
            if self.beta is not None and self.mode == "mixup":
                w = w * _beta(self.beta, w)
        source, target = edge_index
        if not source.numel():
            return Mean(z_s.sum() * 0.0, torch.zeros((), device=z_s.device))
        log_q = torch.log_softmax(z_s / self.temperature, 1)[target]
        p = torch.softmax(z_t / self.temperature, 1)
        goal = p[source]
        if self.mode == "mixup":
            goal = torch.lerp(p[target], goal, w[:, None])
            w = torch.ones_like(w)
        divergence = (torch.xlogy(goal, goal) - goal * log_q).sum(1)
        total = w.sum()
        value = (divergence * w).sum() / total.clamp_min(torch.finfo(w.dtype).tiny)
        return Mean.known(value, total.detach())

    def chance(self, z_s: Tensor, z_t: Tensor, edge_index: Tensor) -> Tensor:
        """The probability w of each edge [E]."""
        source, target = edge_index
        p = torch.nn.functional.normalize(torch.softmax(z_t, 1), dim=1)
        alike = (p[source] * p[target]).sum(1)
        certain = entropy(z_t).clamp_min(1e-9)
        hard = (certain * entropy(z_s).clamp_min(1e-9)).sqrt()
        fall = 1.0 if self.span is None else 100 ** -(self.calls / self.span).clamp_max(1)
        return 1 - torch.exp(-self.alpha * fall * alike * hard[target] / certain[source])


def _beta(level: float, like: Tensor) -> Tensor:
    """Draws of Beta(level, level), as many as there are edges, from the global stream."""
    both = torch._standard_gamma(like.new_full((2, *like.shape), level))
    return both[0] / both.sum(0).clamp_min(torch.finfo(both.dtype).tiny)


def _with_loops(edge_index: Tensor, count: int) -> Tensor:
    return torch.cat([edge_index, torch.arange(count, device=edge_index.device).expand(2, -1)], 1)


def _unweighted(name: str, edge_weight: Tensor | None) -> None:
    if edge_weight is not None:
        raise ConfigError(
            f"{name}: edge_weight must be None, since the method draws neighbours without weights; "
            "remove it from the graph, or take ff-g2m"
        )


def _relative_entropy(z_t: Tensor) -> Tensor:
    return entropy(z_t) / math.log(max(2, z_t.shape[1]))
