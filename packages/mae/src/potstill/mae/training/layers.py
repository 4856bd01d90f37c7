"""Which block of the student is aligned with which block of the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

from potstill.core import ConfigError

__all__ = ["Layers", "layer_map"]

Layers = float | int | Sequence[float | int | Sequence[int]]
"""A share of the depth, a block index, a pair ``(student, teacher)``, or several of these."""


def layer_map(layers: Layers, depth_s: int, depth_t: int) -> list[tuple[int, int]]:
    """Turn ``layers`` into pairs of 0-based block indices.

    A float in (0, 1] is a share of each depth: ``round(share * depth) - 1``, halves up. An int is
    the same index in both models. A pair gives both indices.

    Args:
        layers: One of these, or a sequence of them for several taps.
        depth_s: Blocks of the student.
        depth_t: Blocks of the teacher.

    Returns:
        ``[(student, teacher), ...]`` in increasing order.

    Raises:
        ConfigError: An index outside a model, an entry that is no pair, or a pair given twice.

    Example:
        >>> layer_map(0.75, 12, 24)  # the published choice
        [(8, 17)]
        >>> layer_map([0.5, 1.0], 12, 24), layer_map([(8, 17), (11, 23)], 12, 24)
        ([(5, 11), (11, 23)], [(8, 17), (11, 23)])
    """
    entries = [layers] if isinstance(layers, int | float) else list(layers)
    pairs = sorted(_pair(entry, depth_s, depth_t) for entry in entries)
    if not pairs:
        raise ConfigError("layer_map: layers must name at least one block, got none")
    if len(set(pairs)) < len(pairs):
        raise ConfigError(f"layer_map: each pair of blocks must occur once, got {pairs}")
    return pairs


def _pair(entry: float | int | Sequence[int], depth_s: int, depth_t: int) -> tuple[int, int]:
    if isinstance(entry, float):
        if not 0.0 < entry <= 1.0:
            raise ConfigError(f"layer_map: a share must be in (0, 1], got {entry}")
        return _at_share(entry, depth_s), _at_share(entry, depth_t)
    if isinstance(entry, int):
        entry = (entry, entry)
    if len(entry) != 2:
        raise ConfigError(
            f"layer_map: each entry must be a share, an index or a pair (student, teacher), got "
            f"{list(entry)}; name as many student as teacher blocks"
        )
    for index, depth, whose in zip(entry, (depth_s, depth_t), ("student", "teacher"), strict=True):
        if not 0 <= index < depth:
            raise ConfigError(
                f"layer_map: the {whose} has blocks 0 to {depth - 1}, got {index}; "
                "indices count from 0"
            )
    return int(entry[0]), int(entry[1])


def _at_share(share: float, depth: int) -> int:
    return max(math.floor(share * depth + 0.5), 1) - 1
