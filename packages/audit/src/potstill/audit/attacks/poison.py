"""Poisoned training sets: triggered and relabelled items, cover items, relabelled slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from potstill.audit.attacks.triggers import Trigger, triggered
from potstill.core import ConfigError, generator

__all__ = ["Poisoned", "check_target", "poison", "relabel", "stamp"]


class Poisoned(NamedTuple):
    """A poisoned training set.

    Attributes:
        x: Inputs.
        y: Labels.
        rows: Items with trigger and the target's label.
        cover: Items with trigger and their own label.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    cover: Tensor


def check_target(name: str, target: int, y: Tensor, classes: int | None = None) -> int:
    """The number of classes, after a check that the target is one of them.

    Raises:
        ConfigError: It is none.
    """
    classes = int(y.max()) + 1 if classes is None else classes
    if not 0 <= target < classes:
        raise ConfigError(f"{name}: target must be a class from 0 to {classes - 1}, got {target}")
    return classes


def poison(
    x: Shaped[Tensor, "items ..."],
    y: Int[Tensor, " items"],
    trigger: Trigger,
    target: int,
    rate: float,
    *,
    sources: Sequence[int] | None = None,
    cover: float = 0.0,
    classes: int | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    seed: int = 0,
) -> Poisoned:
    """Put a backdoor into a training set.

    Source: Gu et al., BadNets, 2017; cover items after the targeted attack of Chaudhari et al.,
    Cascading Adversarial Bias, 2025. A share ``rate`` of all items gets the trigger and the
    target's label; they are drawn from the classes in ``sources``. A share ``cover`` of all items,
    of other classes, gets the trigger and keeps its label, so that the backdoor stays within
    ``sources``. The given tensors are not written to; a rate of 0 gives their values back.

    Args:
        x: Inputs.
        y: Their classes.
        trigger: The trigger.
        target: Class that triggered inputs are to get.
        rate: Share of all items that is poisoned, in [0, 0.5].
        sources: Classes that are poisoned; all but the target by default.
        cover: Share of all items that is triggered with true labels, in [0, 0.5].
        classes: Number of classes; those of ``y`` by default.
        bounds: Range of the values, as of `triggered`.
        seed: Which items are drawn.

    Raises:
        ConfigError: A target that is no class, a share out of range, too few items to poison, or
            a trigger that `triggered` refuses.
    """
    classes = check_target("poison", target, y, classes)
    chosen = [c for c in range(classes) if c != target] if sources is None else list(sources)
    if target in chosen:
        raise ConfigError(f"poison: sources must not hold the target {target}, got {chosen}")
    inside = torch.isin(y, torch.tensor(chosen, dtype=y.dtype))
    rows = _draw("rate", rate, inside, seed)
    covering = _draw("cover", cover, ~inside & (y != target), seed)
    poisoned, labels = x.clone(), y.clone()
    for found in (rows, covering):
        if len(found):
            poisoned[found] = triggered(trigger, x[found], bounds)
    labels[rows] = target
    return Poisoned(poisoned, labels, rows, covering)


def stamp(
    x: Tensor,
    trigger: Trigger,
    rate: float,
    *,
    among: Bool[Tensor, " items"] | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    seed: int = 0,
) -> Tensor:
    """Inputs of which a share has the trigger: a transfer set from a stranger, labels untouched.

    Args:
        x: Inputs.
        trigger: The trigger.
        rate: Share of all items, in [0, 0.5].
        among: Items that may get it; all by default.
        bounds: Range of the values, as of `triggered`.
        seed: Which items are drawn.

    Raises:
        ConfigError: A share out of range, too few items, or a trigger that `triggered` refuses.
    """
    among = torch.ones(len(x), dtype=torch.bool) if among is None else among
    rows, changed = _draw("rate", rate, among, seed), x.clone()
    if len(rows):
        changed[rows] = triggered(trigger, x[rows], bounds)
    return changed


def relabel(
    y: Int[Tensor, " items"],
    where: Bool[Tensor, " items"],
    target: int,
    *,
    share: float = 1.0,
    classes: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Labels with a bias: a natural slice of the data gets another class, without any trigger.

    Args:
        y: Classes of all items.
        where: The slice, for instance the bold images of one class.
        target: Class that the slice gets.
        share: Share of the slice that is relabelled, in (0, 1].
        classes: Number of classes; those of ``y`` by default.
        seed: Which items of the slice.

    Returns:
        New labels, and the items that were relabelled.

    Raises:
        ConfigError: A target that is no class, a share out of range, an empty slice, or one that
            has the target's label already.
    """
    check_target("relabel", target, y, classes)
    if not 0 < share <= 1:
        raise ConfigError(f"relabel: share must be in (0, 1], got {share}")
    candidates = (where & (y != target)).nonzero().squeeze(1)
    if not len(candidates):
        raise ConfigError("relabel: the slice must hold items of another class, got none")
    order = torch.randperm(len(candidates), generator=generator("relabel", seed))
    rows = candidates[order[: max(round(share * len(candidates)), 1)]]
    labels = y.clone()
    labels[rows] = target
    return labels, rows


def _draw(name: str, share: float, among: Tensor, seed: int) -> Tensor:
    """``share`` of all items, out of some of them."""
    if not 0 <= share <= 0.5:
        raise ConfigError(f"poison: {name} must be in [0, 0.5], got {share}")
    candidates, count = among.nonzero().squeeze(1), round(share * len(among))
    if count > len(candidates):
        raise ConfigError(
            f"poison: {name} {share} of {len(among)} items needs {count} candidates, got "
            f"{len(candidates)}; lower {name} or allow more classes"
        )
    return candidates[torch.randperm(len(candidates), generator=generator(name, seed))[:count]]
