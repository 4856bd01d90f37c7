"""Criteria of other GNN-to-MLP methods, for comparison: KRD and HGMD.

Both choose, anew in every step, which neighbours teach a node, and both are called like the
criteria of `potstill.graph.criteria`. They add a term to `SoftLabel`; they do not replace it.
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

    Args:
        temperature: T > 0.
        rho: Reliability [N] in [0, 1] as of `reliability`; the teacher's entropy, scaled to [0, 1],
            when None.
        power: Where a starts.
        momentum: Share of the old a that stays, in [0, 1].

    Call:
        z_s, z_t: logits [N C]; edge_index: [2 E]; weights are refused: the method has none.

    Returns:
        Scalar, nats per drawn edge; zero when none is drawn.

    Raises:
        ConfigError: A temperature or power that is not positive, a momentum outside [0, 1], or
            weights of edges.
        ShapeError: ``rho`` is not [N].
    """

    a: Tensor

    def __init__(
        self,
        temperature: float = 1.0,
        rho: Tensor | None = None,
        power: float = 1.0,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        if not (temperature > 0 and power > 0 and 0 <= momentum <= 1):
            raise ConfigError(
                "KRD: temperature and power must be > 0 and momentum in [0, 1], got "
                f"{temperature}, {power} and {momentum}"
            )
        self.temperature, self.momentum, self.rho = temperature, momentum, rho
        self.register_buffer("a", torch.tensor(power))
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
        self._follow(rho, z_s.detach().argmax(1) == z_t.argmax(1))
        chance = 1 - rho**self.a
        drawn = torch.rand_like(chance) < chance
        source, target = edge_index[:, drawn[edge_index[0]]]
        if not source.numel():
            return Mean(z_s.sum() * 0.0, torch.zeros((), device=z_s.device))
        log_q = torch.log_softmax(z_s / self.temperature, 1)[target]
        log_p = torch.log_softmax(z_t / self.temperature, 1)[source]
        value = (log_p.exp() * (log_p - log_q)).sum(1).mean()
        return Mean.known(value, torch.full((), len(log_p), device=value.device))

    @torch.no_grad()
    def _follow(self, rho: Tensor, agrees: Tensor) -> None:
        """Move a towards the power whose curve ``1 - rho ** a`` fits the agreement, bin by bin."""
        level = (rho * _BINS).long().clamp(0, _BINS - 1)
        count = torch.bincount(level, minlength=_BINS)
        share = torch.bincount(level, agrees.to(rho.dtype), _BINS) / count.clamp_min(1)
        centre = (torch.arange(_BINS, device=rho.device) + 0.5) / _BINS
        powers = torch.logspace(-2, 2, 81, device=rho.device)
        misfit = ((1 - centre ** powers[:, None] - share) ** 2 * count).sum(1)
        self.a.lerp_(powers[misfit.argmin()].to(self.a.dtype), 1 - self.momentum)


_BINS = 50


class HGMD(nn.Module):
    """Let hard nodes learn from more of their neighbours, the similar and certain ones first.

    Source: Wu et al., "Teach Harder, Learn Poorer: Rethinking Hard Sample Distillation for
    GNN-to-MLP Knowledge Distillation" (HGMD), CIKM 2024. The teacher of node j joins node i with
    probability ``w = 1 - exp(-alpha cos(p_i, p_j) sqrt(H_t(i) H_s(i)) / H_t(j))``, where p are the
    teacher's distributions and H entropies; no parameters are added.
    ``"weight"``: ``L = sum w KL(p_j || q_i) / sum w`` over the joined edges; ``"mixup"``: the
    target is ``w p_j + (1 - w) p_i``, and the mean is plain.

    Args:
        temperature: T > 0, of p and q in the divergence.
        alpha: How eagerly neighbours join, > 0.
        mode: ``"weight"`` or ``"mixup"``.

    Call:
        z_s, z_t: logits [N C]; edge_index: [2 E]; weights are refused: the method has none.

    Returns:
        Scalar, nats; zero when no neighbour joins.

    Raises:
        ConfigError: A number that is not positive, an unknown mode, or weights of edges.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        alpha: float = 1.0,
        mode: Literal["weight", "mixup"] = "weight",
    ) -> None:
        super().__init__()
        if not (temperature > 0 and alpha > 0):
            raise ConfigError(
                f"HGMD: temperature and alpha must be > 0, got {temperature} and {alpha}"
            )
        if mode not in ("weight", "mixup"):
            raise ConfigError(f"HGMD: mode must be weight or mixup, got {mode!r}")
        self.temperature, self.alpha, self.mode = temperature, alpha, mode

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
        source, target = edge_index[:, joined]
        if not source.numel():
            return Mean(z_s.sum() * 0.0, torch.zeros((), device=z_s.device))
        w = w[joined]
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
        return 1 - torch.exp(-self.alpha * alike * hard[target] / certain[source])


def _unweighted(name: str, edge_weight: Tensor | None) -> None:
    if edge_weight is not None:
        raise ConfigError(
            f"{name}: edge_weight must be None, since the method draws neighbours without weights; "
            "remove it from the graph, or take ff-g2m"
        )


def _relative_entropy(z_t: Tensor) -> Tensor:
    return entropy(z_t) / math.log(max(2, z_t.shape[1]))
