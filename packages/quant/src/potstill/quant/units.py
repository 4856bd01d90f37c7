"""What multiplies 8-bit integers in this processor; importing it is cheap."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["int8_bits", "int8_units"]

_UNITS = ("amx_int8", "avx512_vnni", "avx_vnni")
_CPUINFO = Path("/proc/cpuinfo")


def int8_units() -> str:
    """What multiplies 8-bit integers in this processor, of Linux; "unknown" elsewhere."""
    if not _CPUINFO.exists():
        return "unknown"
    flags = set(re.findall(r"\w+", _CPUINFO.read_text(errors="replace")))
    return ", ".join(unit for unit in _UNITS if unit in flags) or "none: AVX2 or less, without VNNI"


def int8_bits(target: str = "here") -> int:
    """Bits of the weights that onnxruntime can multiply by 8-bit inputs without overflow.

    Without VNNI its 16-bit sums of two products overflow, without a word, where weights use all 8
    bits; 7 fit. Train with the grid that is deployed, ``Grid(int8_bits(), form="restricted")``.

    Args:
        target: "vnni", "avx2", or "here" for this processor; one that is unknown has 7.

    Example:
        >>> int8_bits("vnni"), int8_bits("avx2")
        (8, 7)
    """
    units = int8_units() if target == "here" else target
    return 8 if "vnni" in units.partition(":")[0] or "amx" in units else 7
