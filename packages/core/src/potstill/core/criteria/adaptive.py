"""Criteria and weights that adapt: to the student's progress, to the certainty of both models."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
import torch.distributed
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from potstill.core.criteria.divergence import Logits
from potstill.core.criteria.logit import cross_entropy_rows, softmax_and_log_sum
from potstill.core.criteria.rows import RowForm, RowOptions, evaluate, flatten
from potstill.core.errors import ConfigError

__all__ = ["Taid", "entropy_weight", "taid"]


def _share(z: Tensor, by: Tensor) -> Tensor:
    """``by * z`` where a share of nothing is nothing, also of a class at -inf."""
    return (by * z).masked_fill(by == 0, 0)


def _between(z_s: Tensor, z_t: Tensor, tau: Tensor) -> Tensor:
    return _share(z_s.detach(), 1 - tau) + _share(z_t, tau)


def _taid(z_s: Tensor, z_t: Tensor, tau: Tensor) -> Tensor:
    target = torch.softmax(_between(z_s, z_t, tau), -1)
    return cross_entropy_rows(target, torch.log_softmax(z_s, -1))


def _taid_closed(z_s: Tensor, z_t: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(torch.lerp(z_s, z_t, tau), -1)
    q, top, log_sum = softmax_and_log_sum(z_s, 1.0)
    return (top - torch.linalg.vecdot(p, z_s)) + log_sum, q.sub_(p)


_TAID = RowForm(_taid, _taid_closed)


def taid(
    z_s: Logits,
    z_t: Logits,
    target: Shaped[Tensor, ...] | None = None,
    *,
    tau: float | Tensor,
    **options: Unpack[RowOptions],
) -> Float[Tensor, ...]:
    """Cross-entropy to a target between the student's own output and the teacher's.

    Source: Shing et al., TAID: Temporally Adaptive Interpolated Distillation, ICLR 2025.
    ``p_tau = softmax((1 - tau) sg(z_s) + tau z_t)``, ``L = -mean_n sum_c p_tau log q``; the paper's
    KL is this minus the entropy of p_tau, which has no gradient. At tau = 0 the gradient is 0, at 1
    this is `soft_ce`. `Taid` moves tau by itself.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        target: Labels [...]; only a mask.
        tau: Share of the teacher, in [0, 1].
        **options: See `RowOptions`.

    Raises:
        ShapeError: The logits differ in shape, or there are none.
        ConfigError: tau is not in [0, 1].
    """
    if not isinstance(tau, Tensor):
        if not 0 <= tau <= 1:
            raise ConfigError(f"taid: tau must be in [0, 1], got {tau}")
        tau = torch.tensor(tau, dtype=torch.float64)
    kind = torch.float64 if z_s.dtype == torch.float64 else torch.float32
    return evaluate("taid", _TAID, z_s, z_t, tau.to(z_s.device, kind), target=target, **options)


class Taid(nn.Module):
    """`taid` whose target moves from student to teacher as the loss falls.

    Source: Shing et al., TAID, ICLR 2025, constants of the authors' code. After each
    training call with loss J: ``r = (J' - J) / (J' + 1e-15)`` with J' the loss before,
    ``m <- beta m + (1 - beta) r``, ``tau <- min(end, max(start + (end - start) step / num_steps,
    tau + alpha sigmoid(m) (1 - tau)))``. The first call only stores J. tau never falls. The state
    is in ``state_dict``, so a resumed run goes on where it was; several processes average J first.

    Args:
        num_steps: After how many training calls tau has reached ``end`` at the latest.
        start: First tau.
        end: Last tau.
        alpha: Size of the adaptive steps.
        beta: Memory of the relative improvement, in [0, 1).

    Raises:
        ConfigError: An option out of range.

    Example:
        >>> criterion = Taid(num_steps=100)
        >>> z_s, z_t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
        >>> for _ in range(2):
        ...     loss = criterion(z_s, z_t)
        >>> round(float(criterion.tau), 3)
        0.406
    """

    tau: Tensor
    momentum: Tensor
    previous: Tensor
    step: Tensor

    def __init__(
        self,
        num_steps: int,
        *,
        start: float = 0.4,
        end: float = 1.0,
        alpha: float = 5e-4,
        beta: float = 0.99,
    ) -> None:
        super().__init__()
        if num_steps < 1 or not 0 <= start <= end <= 1 or alpha < 0 or not 0 <= beta < 1:
            raise ConfigError(
                "Taid: num_steps >= 1, 0 <= start <= end <= 1, alpha >= 0 and 0 <= beta < 1 are "
                f"needed, got {(num_steps, start, end, alpha, beta)}"
            )
        self.num_steps, self.start, self.end = num_steps, start, end
        self.alpha, self.beta = alpha, beta
        self.register_buffer("tau", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("momentum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("previous", torch.tensor(torch.nan, dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(
        self, z_s: Tensor, z_t: Tensor, target: Tensor | None = None, **options: Unpack[RowOptions]
    ) -> Tensor:
        """`taid` at the current tau; in training the state moves on."""
        loss = taid(z_s, z_t, target, tau=self.tau.clone(), **options)
        if self.training:
            self.update(loss.detach().mean(), getattr(loss, "count", len(z_s)))
        return loss

    @torch.no_grad()
    def update(self, loss: Tensor, count: float | Tensor = 1) -> None:
        """Move tau, given the loss of a step, a mean over ``count`` rows of this process."""
        loss = loss.to(self.tau)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shared = torch.stack([loss, torch.ones_like(loss)]) * torch.as_tensor(count).clamp_min(
                1
            )
            torch.distributed.all_reduce(shared)
            loss = shared[0] / shared[1]
        gain = (self.previous - loss) / (self.previous + 1e-15)
        first = self.previous.isnan()
        momentum = self.beta * self.momentum + (1 - self.beta) * gain
        least = self.start + (self.end - self.start) * self.step.to(self.tau) / self.num_steps
        tau = self.tau + self.alpha * momentum.sigmoid() * (1 - self.tau)
        tau = torch.maximum(least, tau).clamp_max(self.end)
        self.momentum.copy_(torch.where(first, self.momentum, momentum))
        self.tau.copy_(torch.where(first, self.tau, tau))
        self.previous.copy_(loss)
        self.step += 1


def entropy_weight(
    z_s: Logits,
    z_t: Logits,
    *,
    kind: Literal["teacher", "student", "both"] = "both",
    gamma: float = 1.0,
    normalize: bool = True,
    T: float = 1.0,
    dim: int | None = None,
) -> Float[Tensor, "*rows"]:
    """Weights of rows by how ambiguous they are to the models: pass as ``weight=``.

    Source: after the deviation-aware distillation of Chen et al., DB-LLM, 2024. The form is ours,
    since the paper's could not be read: ``w = (H / log C)^gamma`` with H the entropy of the
    teacher, the student, or their mean. gamma = 0 leaves rows unweighted. Without gradient.

    Args:
        z_s: Logits of the student, [..., C].
        z_t: Logits of the teacher, same shape.
        kind: Model whose entropy counts.
        gamma: Sharpness, >= 0.
        normalize: Divide by the mean weight, so that the size of a loss stays.
        T: Temperature > 0.
        dim: The class axis, the last by default; dense logits must name theirs.

    Raises:
        ConfigError: An unknown kind, or a negative gamma.
        ShapeError: Shapes that differ, no row, or dense logits without ``dim``.
    """
    if kind not in ("teacher", "student", "both") or gamma < 0:
        raise ConfigError(
            f"entropy_weight: kind must be teacher, student or both and gamma >= 0, got "
            f"{kind!r}, {gamma}"
        )
    z_s, z_t, shape = flatten("entropy_weight", z_s, z_t, dim)
    chosen = {"teacher": [z_t], "student": [z_s], "both": [z_t, z_s]}[kind]
    with torch.no_grad():
        entropies = [torch.special.entr(torch.softmax(z.float() / T, -1)).sum(-1) for z in chosen]
        mean = torch.stack(entropies).mean(0) / torch.tensor(float(z_t.shape[-1])).log()
        weight = mean.clamp_min(0).reshape(shape) ** gamma
        return weight / weight.mean().clamp_min(1e-12) if normalize else weight
