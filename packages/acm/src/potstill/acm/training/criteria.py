"""Criteria of the three phases: pure functions of tensors.

Source of all: Wójcik et al., "Adaptive Computation Modules", AAAI 2025, section "Training".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from potstill.core import ConfigError, ShapeError

__all__ = [
    "artificial_labels", "budget_loss", "diversity_loss", "entropy_loss", "every_prefix",
    "gate_loss",
]  # fmt: skip

Distance = Literal["mse", "mae", "huber"]

_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}


def every_prefix(
    prefixes: Float[Tensor, "learners_and_one *rows out"],
    target: Float[Tensor, "*rows out"],
    distance: Distance = "mse",
    boosted: bool = False,
) -> Float[Tensor, ""]:
    """Phase 1: how far the first n learners are from the dense module, averaged over n = 1..N.

    ``L = mean over n, rows, columns of distance(h(z, n), o)``. No learner at all (n = 0) gives a
    constant, which is left out.

    Args:
        prefixes: ``h(z, 0)`` to ``h(z, N)``.
        target: Output o of the dense module.
        distance: Squared, absolute or Huber error.
        boosted: The n-th prefix trains learner n alone, its predecessors taken as they are (what
            the public code always does); else all of them.

    Raises:
        ShapeError: Shapes that do not fit.
        ConfigError: An unknown distance.
    """
    if prefixes.shape[1:] != target.shape:
        raise ShapeError(
            f"every_prefix: target must be {list(prefixes.shape[1:])} like each prefix, got "
            f"{list(target.shape)}; does the teacher's module have another width?"
        )
    if distance not in _DISTANCES:
        raise ConfigError(
            f"every_prefix: distance must be one of {', '.join(_DISTANCES)}, got {distance!r}"
        )
    if boosted:
        before = prefixes[:-1]
        outputs = before.detach() + (prefixes[1:] - before)
    else:
        outputs = prefixes[1:]
    return _DISTANCES[distance](outputs, target.expand_as(outputs))


def artificial_labels(
    prefixes: Float[Tensor, "learners_and_one *rows out"],
    target: Float[Tensor, "*rows out"],
    threshold: float = 0.8,
    least: int = 0,
    inclusive: bool = False,
) -> Int[Tensor, "*rows"]:
    """Phase 2: how many learners a token should get, by what one more would gain.

    With ``d(n) = |h(z, n) - o|``: the smallest n from ``least`` on whose successor does not help,
    ``d(n+1) >= threshold * d(n)``; N if each of them helps.

    Args:
        prefixes: ``h(z, 0)`` to ``h(z, N)``.
        target: Output o of the dense module.
        threshold: Remaining distance that counts as no help, in (0, 1].
        least: The smallest label.
        inclusive: Count the learner that did not help too, as the formula of the paper does (its
            text, and this default, do not).

    Raises:
        ConfigError: ``threshold`` is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"artificial_labels: threshold must be in (0, 1], got {threshold}")
    distances = (prefixes - target).norm(dim=-1)[least:]
    useless = distances[1:] >= threshold * distances[:-1]
    last = torch.ones_like(distances[:1], dtype=torch.bool)
    label = torch.cat([useless, last]).int().argmax(0) + least
    return (label + 1).clamp(max=len(prefixes) - 1) if inclusive else label


def gate_loss(
    logits: Float[Tensor, "*rows choices"], labels: Int[Tensor, "*rows"], least: int = 0
) -> Float[Tensor, ""]:
    """Phase 2: cross-entropy of the gate on `artificial_labels`, mean over tokens.

    ``L_g = -mean over tokens of log softmax(logits)[label - least]``.
    """
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten() - least)


def budget_loss(
    share: Float[Tensor, " batch"], budget: float, distance: Literal["l1", "l2"] = "l1"
) -> Float[Tensor, ""]:
    """Phase 3: distance of the batch's mean cost from the budget.

    ``L_b = | mean_i share_i - budget |`` with ``share_i`` the multiply-adds spent on image i over
    those of all learners.

    Args:
        share: Share of the full cost for each image, in [0, 1].
        budget: Share to aim at, in (0, 1].
        distance: Absolute, as published, or squared.

    Raises:
        ConfigError: ``budget`` is not in (0, 1], or an unknown distance.
    """
    if not 0 < budget <= 1:
        raise ConfigError(f"budget_loss: budget must be in (0, 1], got {budget}")
    if distance not in ("l1", "l2"):
        raise ConfigError(f"budget_loss: distance must be l1 or l2, got {distance!r}")
    gap = share.mean() - budget
    return gap.abs() if distance == "l1" else gap.square()


def entropy_loss(
    one_hots: Sequence[Float[Tensor, "batch tokens choices"]],
) -> Float[Tensor, ""]:
    """Phase 3: negative entropy of what the tokens of an image choose; minimised when all differ.

    ``L_e = mean over images and modules of sum_n a_n log a_n / log(#choices)`` in [-1, 0], where
    a_n is the share of the image's tokens that choose n in the module.

    Args:
        one_hots: Choices by module; modules may differ in tokens and choices.

    Raises:
        ShapeError: No module.
    """
    if not one_hots:
        raise ShapeError("entropy_loss: one_hots must name at least one module, got none")
    values = []
    for one_hot in one_hots:
        share = one_hot.float().mean(1)
        choices = max(share.shape[-1], 2)  # a single choice has no entropy, and log 1 is 0
        log = (share + 1e-6).log()  # finite where nobody chooses, and the gradient pulls there
        values.append((share * log).sum(-1).mean() / math.log(choices))
    return torch.stack(values).mean()


def diversity_loss(share: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Phase 3: negative mean difference of cost between images; minimised when they differ.

    ``L_d = - mean over all ordered pairs (i, m) of |share_i - share_m|``, pairs of one with itself
    included. The paper prints it without the minus, though it is to be maximised. One image: 0.
    """
    return -(share[:, None] - share[None, :]).abs().mean()
