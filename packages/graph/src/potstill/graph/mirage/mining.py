"""Sets of items that occur together: closed frequent item sets, on bit sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from potstill.core import ConfigError, DataError

__all__ = ["Pattern", "mine"]


class Pattern(NamedTuple):
    """Items that occur together.

    Attributes:
        items: In increasing order.
        support: In how many transactions all of them occur.
    """

    items: tuple[int, ...]
    support: int


def mine(
    transactions: Sequence[Iterable[int]],
    support: int,
    max_size: int | None = None,
    max_patterns: int = 100_000,
) -> list[Pattern]:
    """All closed sets of items that occur together in at least ``support`` transactions.

    A set is closed when no larger one occurs in the same transactions: the larger says more with
    the same support. Each closed set is reached once, by extending a closed set with an item and
    closing again, if that adds no item before it (Uno, Asai, Uchida, Arimura, LCM, 2003).

    Args:
        transactions: Sets of numbers.
        support: At least 1.
        max_size: Leave out larger sets, and what contains them.
        max_patterns: Give up beyond so many sets.

    Returns:
        By support, then size, both falling, then items.

    Raises:
        ConfigError: ``support`` or ``max_size`` below 1.
        DataError: More sets than ``max_patterns``.

    Example:
        >>> mine([{1, 2}, {1, 2}, {1}], support=2)
        [Pattern(items=(1,), support=3), Pattern(items=(1, 2), support=2)]
    """
    if support < 1 or (max_size is not None and max_size < 1):
        raise ConfigError(
            f"mine: support and max_size must be at least 1, got {support} and {max_size}"
        )
    where: dict[int, int] = {}  # the transactions of an item, as bits
    for number, items in enumerate(transactions):
        for item in set(items):
            where[item] = where.get(item, 0) | 1 << number
    where = {item: bits for item, bits in where.items() if bits.bit_count() >= support}
    order = sorted(where, key=lambda item: (where[item].bit_count(), item))

    def close(bits: int) -> frozenset[int]:
        return frozenset(k for k, item in enumerate(order) if bits & ~where[item] == 0)

    everything = (1 << len(transactions)) - 1
    found: list[Pattern] = []
    stack = [(close(everything), everything, -1)] if len(transactions) >= support else []
    while stack:
        inside, bits, last = stack.pop()
        if max_size is not None and len(inside) > max_size:
            continue
        if inside:
            found.append(Pattern(tuple(sorted(order[k] for k in inside)), bits.bit_count()))
            if len(found) > max_patterns:
                raise DataError(
                    f"mine: at most {max_patterns} patterns are wanted, got more at support "
                    f"{support}; raise support, set max_size or raise max_patterns"
                )
        for k in range(last + 1, len(order)):
            fewer = bits & where[order[k]]
            if k in inside or fewer.bit_count() < support:
                continue
            wider = close(fewer)
            if all(j in inside for j in wider if j < k):
                stack.append((wider, fewer, k))
    return sorted(found, key=lambda p: (-p.support, -len(p.items), p.items))
