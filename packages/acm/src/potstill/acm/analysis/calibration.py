"""Another budget without another training: tilt the gates until the mean cost is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from potstill.acm.layers.budget import (
    all_batches,
    check_budget,
    evaluation,
    images_for,
    reachable,
    share,
)
from potstill.acm.layers.module import ACM, record_gates, require_acms
from potstill.core import ConfigError

__all__ = ["Calibration", "calibrate"]


class Calibration(NamedTuple):
    """What calibration found.

    Attributes:
        tilt: Cost of each further learner in logits; the gates hold it.
        budget: Mean budget on the calibration images.
        tries: Number of runs over the images.
    """

    tilt: float
    budget: float
    tries: int


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    budget: float,
    *,
    tolerance: float = 0.002,
    tries: int = 24,
) -> Calibration:
    """Set the gates so that ``model`` spends ``budget`` on the mean image.

    Every gate subtracts ``tilt`` times the number of learners from its logits. A larger tilt never
    lets a token choose more, given its input, so the tilt is found by bisection; the model runs on
    all images each time, since what early modules choose changes what later ones see. Weights are
    not touched, labels not needed.

    Args:
        model: Adaptive model with trained gates; changed in place.
        batches: Some hundred images like those to come, of the training set: in batches of images
            or (images, labels).
        budget: Mean share of the learners' cost, in (0, 1].
        tolerance: Accepted distance from the budget.
        tries: Runs over the images at most; the closest counts.

    Raises:
        ConfigError: A budget out of range or below what the model can reach; no batch; no module
            whose mode is ``"gated"``.

    Example:
        >>> import timm
        >>> from potstill.acm import acmize
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2)
        >>> images = torch.randn(8, 3, 32, 32)
        >>> calibrate(acmize(vit), [images], 0.5, tolerance=0.05).budget < 0.6
        True
    """
    check_budget("calibrate", budget)
    held = all_batches("calibrate", batches)
    gated = [acm for acm in require_acms(model, "calibrate").values() if acm.mode == "gated"]
    if not gated:
        raise ConfigError("calibrate: a module must be in mode 'gated', got none; call set_mode")

    with evaluation(model):
        low, _ = reachable(model, _readings(model, held[0]))
        check_budget("calibrate", budget, low)
        found: dict[float, float] = {}

        def spends(tilt: float) -> float:
            _tilt(gated, tilt)
            if tilt not in found:
                found[tilt] = _mean(model, held)
            return found[tilt]

        # From the present state outwards until the budget lies between two tilts, then between.
        lower, upper, reach = 0.0, 0.0, 1.0
        if spends(0.0) > budget:
            while spends(upper) > budget and len(found) < tries:
                lower, upper, reach = upper, upper + reach, 2 * reach
        else:
            while spends(lower) < budget and len(found) < tries:
                lower, upper, reach = lower - reach, lower, 2 * reach
        while min(abs(b - budget) for b in found.values()) > tolerance and len(found) < tries:
            middle = (lower + upper) / 2
            if spends(middle) > budget:
                lower = middle
            else:
                upper = middle
    tilt = min(found, key=lambda t: abs(found[t] - budget))
    _tilt(gated, tilt)
    model.acm_budget = budget  # type: ignore[assignment]
    return Calibration(tilt, found[tilt], len(found))


def _tilt(modules: list[ACM], tilt: float) -> None:
    for acm in modules:
        acm.gate.tilt.fill_(tilt)


def _readings(model: nn.Module, batch: Any) -> Any:
    with record_gates(model) as readings:
        model(images_for(model, batch))
    return readings


def _mean(model: nn.Module, batches: list[Any]) -> float:
    shares = [share(_readings(model, batch)) for batch in batches]
    return float(torch.cat(shares).mean())
