"""A share of a set of images, class by class."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from potstill.condense.data.pool import Pool
from potstill.condense.selection.rules import RULES
from potstill.core import ConfigError, generator, nearest
from potstill.core.adapters import Renormalized, load_teacher

__all__ = ["embed", "select"]

Features = Callable[[Tensor], Tensor]


def select(
    pool: Pool,
    *,
    ratio: float | None = None,
    ipc: int | None = None,
    method: str = "graphcut",
    features: Features | Tensor | None = None,
    seed: int = 0,
) -> Int[Tensor, " picks"]:
    """Choose images to keep, equally many of each class or an equal share.

    Args:
        pool: The images.
        ratio: Share of each class, in (0, 1]; or
        ipc: images per class.
        method: ``graphcut`` (a share of each graph-cut bin: dataset quantization), ``herding``,
            ``kcenter`` or ``random``.
        features: A callable from normalised images to features [images features] (a network with
            ``embed`` will do), or the features of all images; the pixels by default.
        seed: Seed of what is random.

    Returns:
        Rows of the pool, class after class, each in the order of the picks.

    Raises:
        ConfigError: Neither or both of ratio and ipc, a ratio outside (0, 1], more images than a
            class has, or an unknown method.
    """
    if (ratio is None) == (ipc is None):
        raise ConfigError(f"select: give ratio or ipc, one of them, got {ratio} and {ipc}")
    if ratio is not None and not 0 < ratio <= 1:
        raise ConfigError(f"select: ratio must be in (0, 1], got {ratio}")
    if method not in RULES:
        raise ConfigError(f"select: unknown method {method!r}; {nearest(method, RULES)}")
    if ipc is not None:
        pool.require(ipc, "select")
    found = features if isinstance(features, Tensor) else embed(pool, features)
    if len(found) != len(pool):
        raise ConfigError(
            f"select: features must have a row for each of {len(pool)} images, got {len(found)}"
        )
    picks = []
    for number, size in enumerate(pool.counts.tolist()):
        rows = (pool.labels == number).nonzero().flatten()
        count = ipc if ipc is not None else max(round((ratio or 0) * size), 1)
        rng = generator("select", method, seed, number)
        picks.append(rows[RULES[method](found[rows], count, rng)])
    return torch.cat(picks)


@torch.no_grad()
def embed(pool: Pool, features: Features | str | None = None, batch: int = 256) -> Tensor:
    """Features of all images, [images features].

    Args:
        pool: The images.
        features: A network with ``embed``, a callable, the name of a model of timm (with its
            published weights); or None for the pixels.
        batch: Images at a time.
    """
    if isinstance(features, str):
        features = _published(features, pool)
    if isinstance(features, nn.Module):
        features = features.eval()
    call = getattr(features, "embed", features) or (lambda x: x)
    rows = torch.arange(len(pool)).split(batch)
    return torch.cat([call(pool.normalized(part)).flatten(1) for part in rows])


def _published(name: str, pool: Pool) -> Features:
    """Features of a model of timm with its weights, at its own size and normalisation."""
    loaded = load_teacher(f"timm:{name}", num_classes=0)
    size = getattr(loaded.model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    channels = pool.shape[0]
    statistics = tuple((values * 3)[:3] for values in pool.statistics)  # grey becomes colour
    model = Renormalized(loaded.model, statistics, loaded.statistics)  # type: ignore[arg-type]

    def features(images: Tensor) -> Tensor:
        colored = images.expand(-1, 3, -1, -1) if channels == 1 else images
        large = F.interpolate(colored, size=size, mode="bicubic", antialias=True)
        found: Tensor = model(large)
        return found

    return features
