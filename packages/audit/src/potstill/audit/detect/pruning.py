"""Fine-pruning, beside fine-tuning alone: measured baselines, no repair."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.audit.attacks.success import outputs
from potstill.audit.detect.spectral import features
from potstill.core import ConfigError, Objective, accuracy, fit, nearest
from potstill.core.images import ResidentImages
from potstill.core.schemes import LogitDistiller

__all__ = ["Repair", "fine_tune", "prune", "repair"]


class Repair(NamedTuple):
    """Four models: what was done to each is its name.

    Attributes:
        before: As given.
        tuned: Fine-tuned on clean items: the control.
        pruned: Pruned.
        pruned_tuned: Pruned, then fine-tuned.
    """

    before: nn.Module
    tuned: nn.Module
    pruned: nn.Module
    pruned_tuned: nn.Module


def prune(
    model: nn.Module, layer: str, x: Tensor, y: Tensor, *, allowed: float = 0.04
) -> tuple[nn.Module, list[int]]:
    """A copy in which the units least active on clean data are zeroed, while accuracy holds.

    Source: Liu et al., Fine-Pruning, RAID 2018: units by mean activation, from the least on, until
    the accuracy on clean items has fallen by more than allowed; the last step is undone.

    Args:
        model: From inputs to logits.
        layer: A linear or convolutional module; its outputs are the units.
        x: Clean inputs.
        y: Their classes.
        allowed: Accuracy that may be lost, in [0, 1].

    Returns:
        The copy and the units that are zeroed in it.

    Raises:
        ConfigError: No such layer, or one of another kind.
    """
    pruned = copy.deepcopy(model)
    parts = dict(pruned.named_modules())
    unit = parts.get(layer)
    if not isinstance(unit, nn.Linear | nn.Conv2d):
        kinds = [n for n, m in parts.items() if isinstance(m, nn.Linear | nn.Conv2d)]
        raise ConfigError(
            f"prune: layer must be a linear or convolutional module, got {layer!r}; "
            f"{nearest(layer, kinds)}"
        )
    with torch.no_grad():
        activity = features(pruned, layer, x).relu().mean(0)
        activity = activity.view(len(unit.weight), -1).mean(1)
        least = float(accuracy(outputs(pruned, x), y)) - allowed
        done: list[int] = []
        parameters = [p for p in (unit.weight, unit.bias) if p is not None]
        for index in activity.argsort().tolist():
            kept = [p[index].clone() for p in parameters]
            for p in parameters:
                p[index] = 0
            if float(accuracy(outputs(pruned, x), y)) < least:
                for p, value in zip(parameters, kept, strict=True):
                    p[index] = value
                break
            done.append(index)
    return pruned, done


def fine_tune(
    model: nn.Module, x: Tensor, y: Tensor, *, steps: int = 100, lr: float = 1e-3, **options: Any
) -> nn.Module:
    """A copy that is trained on a few clean items with their labels.

    Args:
        model: From images to logits.
        x: Clean images [items channels height width].
        y: Their classes.
        steps: Steps of Adam.
        lr: Its learning rate.
        **options: Other options of `potstill.core.fit`.
    """
    tuned = copy.deepcopy(model)
    batches = ResidentImages(x, y, min(64, len(x)), shift=0, flip=False)
    distiller = LogitDistiller(tuned, Objective(task=(1.0, F.cross_entropy)))
    fit(distiller, batches, steps=steps, lr=lr, **{"progress": False, **options})
    return tuned


def repair(
    model: nn.Module, layer: str, x: Tensor, y: Tensor, *, allowed: float = 0.04, **options: Any
) -> Repair:
    """Fine-pruning with its control, on a few clean items.

    On digits most of a backdoor stays after all three; distil anew on your own data instead.

    Args:
        model: From images to logits.
        layer: Layer whose units are pruned.
        x: Clean images.
        y: Their classes.
        allowed: Accuracy that pruning may lose.
        **options: Options of `fine_tune`.
    """
    pruned, _ = prune(model, layer, x, y, allowed=allowed)
    return Repair(
        model, fine_tune(model, x, y, **options), pruned, fine_tune(pruned, x, y, **options)
    )
