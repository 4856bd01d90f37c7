"""Canaries: items with a random wrong label, which only memory can get right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from potstill.core import ConfigError, generator
from potstill.core.schemes import near_duplicates

__all__ = ["Canaries", "plant"]

FEWEST = 20


class Canaries(NamedTuple):
    """A set of items, some of which are canaries.

    Attributes:
        x: Inputs.
        y: Classes; those of the canaries are wrong.
        rows: The canaries.
    """

    x: Tensor
    y: Tensor
    rows: Tensor


def plant(
    x: Shaped[Tensor, "items ..."],
    y: Int[Tensor, " items"],
    pool: int,
    *,
    classes: int | None = None,
    test: Tensor | None = None,
    seed: int = 0,
) -> Canaries:
    """Give a random wrong label to a pool of items.

    Args:
        x: Inputs.
        y: Their classes.
        pool: Number of canaries; a world inserts some of them, and exposure ranks these among the
            others.
        classes: Number of classes; those of ``y`` by default.
        test: Inputs of the test set, which must hold no canary.
        seed: Which items, and which labels.

    Raises:
        ConfigError: A pool smaller than 20 or larger than the items; two canaries with one input,
            or one that is in the test set: their ranks would mean nothing.
    """
    classes = int(y.max()) + 1 if classes is None else classes
    if not FEWEST <= pool <= len(x):
        raise ConfigError(
            f"plant: pool must be {FEWEST} to the {len(x)} items, got {pool}; ranks among fewer "
            "canaries mean little"
        )
    rng = generator("canaries", seed)
    rows = torch.randperm(len(x), generator=rng)[:pool].sort().values
    flat = x[rows].flatten(1)
    for name, among in (("the pool twice", None), ("the test set", test)):
        if among is None and name == "the test set":
            continue
        repeated = near_duplicates(flat, None if among is None else among.flatten(1), threshold=1.0)
        if bool(repeated.any()):
            raise ConfigError(
                f"plant: no canary may be in {name}, got {int(repeated.sum())}; remove duplicates "
                "or choose another seed"
            )
    labels = y.clone()
    labels[rows] = (y[rows] + torch.randint(1, classes, (pool,), generator=rng)) % classes
    return Canaries(x, labels, rows)
