"""Configurations of the commands; importing them is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from potstill.core import ConfigError, Training
from potstill.quant.units import int8_bits

__all__ = ["Auto", "Bits", "DistillConfig", "Method", "kept", "number"]

Bits = Literal[1, 2, 3, 4, 7, 8, 32]
Auto = Literal["auto"]
Method = Literal["step", "dual", "levels", "buckets"]


@dataclass(frozen=True)
class DistillConfig:
    """Train a low-bit student with its teacher, beside post-training and training without one.

    Attributes:
        subject: Function that gives the student, package.module:function or file.py:function.
        out: Folder of the run.
        data: Handed to that function.
        bits: Bits of a weight; auto is 8, or 7 where this processor has no VNNI and onnxruntime's
            sums would overflow. What was chosen is recorded.
        method: Quantizer: learned steps (LSQ), dual binarization, learned levels, or buckets.
        start: Weights and scales that training starts from.
        keep: Modules with other bits, as PATH=BITS; 32 leaves one alone.
        control: Also train without the teacher, for the table.
        training: Budget, optimizer, precision, device and seed.

    Raises:
        ConfigError: Words of ``keep`` that are not PATH=BITS; dual binarization of other than 2
            bits; a start from GPTQ with other quantizers than learned steps.
    """

    subject: str
    _: KW_ONLY
    out: Path = Path("runs/quant")
    data: Path | None = None
    bits: Bits | Auto = 4
    method: Method = "step"
    start: Literal["mse", "max", "gptq"] = "mse"
    keep: tuple[str, ...] = ()
    control: bool = True
    training: Training = field(default_factory=lambda: Training(steps=500))

    def __post_init__(self) -> None:
        kept(self.keep)
        object.__setattr__(self, "bits", number(self.bits))
        if self.method == "dual" and self.bits != 2:
            raise ConfigError(f"DistillConfig: bits must be 2 for dual, got {self.bits}")
        if self.start == "gptq" and self.method != "step":
            raise ConfigError(
                f"DistillConfig: start must be mse or max for {self.method}, got gptq; GPTQ finds "
                "levels of learned steps only"
            )


def number(bits: int | Auto) -> int:
    """Bits as a number; see `int8_bits` for "auto"."""
    return int8_bits() if bits == "auto" else bits


def kept(words: Sequence[str]) -> dict[str, int]:
    """Bits by path, of words PATH=BITS.

    Raises:
        ConfigError: A word that is not.

    Example:
        >>> kept(["head=8", "upsampler=32"])
        {'head': 8, 'upsampler': 32}
    """
    found = {}
    for word in words:
        path, _, bits = word.partition("=")
        if not path or not bits.isdecimal():
            raise ConfigError(f"keep: each must be PATH=BITS, got {word!r}; try head=8")
        found[path] = int(bits)
    return found
