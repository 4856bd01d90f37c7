"""Tables: what each number of bits would weigh, and what a student keeps of its quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from potstill.core import Column, Report
from potstill.quant.weights.grid import Grid
from potstill.quant.weights.lower import bake, lower, lowered

__all__ = ["bytes_of", "sizes"]

COLUMNS = {"bits": Column(), "bytes": Column("kB", best="min"), "smaller": Column("x", digits=3)}


def bytes_of(model: nn.Module) -> int:
    """Bytes of a model's weights and buffers in a file: lowered weights packed, others as they are.

    Example:
        >>> net = nn.Linear(64, 10)
        >>> bytes_of(net), bytes_of(lower(net, Grid(bits=4)))
        (2600, 400)
    """
    weights = lowered(model)
    state = bake(model).state_dict()
    plain = sum(value.nbytes for key, value in state.items())
    packed = sum(each.quantizer.bytes(each.original) - each.original.nbytes for each in weights)
    return plain + packed


def sizes(
    model: nn.Module, bits: Sequence[int] = (8, 4, 3, 2, 1), keep: Mapping[str, int] | None = None
) -> Report:
    """What each number of bits would weigh; nothing is run.

    Args:
        model: Any module.
        bits: Numbers of bits.
        keep: Bits of modules that differ, as of `lower`.

    Raises:
        ConfigError: What `lower` refuses.
    """
    report = Report(
        f"Sizes of {type(model).__name__}",
        summary="Weights of layers with their scales; all else is float32 as it is. 3 bits are "
        "stored as 4. Below 8 bits no CPU multiplies faster: a small file, not a quick one.",
        columns=COLUMNS,
        label="weights",
    )
    full = bytes_of(model)
    report.add("as they are", bits=32, bytes=full / 1e3, smaller=1.0)
    for each in bits:
        found = bytes_of(lower(model, Grid(each), keep=keep, start="max"))
        report.add(f"{each} bits", bits=each, bytes=found / 1e3, smaller=full / found)
    return report
