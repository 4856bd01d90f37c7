"""Time of files beside each other, on the processor that is here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from potstill.core import Column, ConfigError, Report
from potstill.core.measure import Load, calls_for, time_block
from potstill.core.measure.bench import BUSY
from potstill.quant.files.onnx import run_onnx
from potstill.quant.files.openvino import run_openvino
from potstill.quant.units import int8_units

__all__ = ["time_files"]

_RUN = {".onnx": run_onnx, ".xml": run_openvino}


def time_files(files: Sequence[Path], x: Tensor, rounds: int = 10) -> Report:
    """CPU time of files on the same input, in blocks that alternate.

    Args:
        files: ONNX files, run in onnxruntime, and OpenVINO's .xml; ratios are to the first.
        x: The input.
        rounds: Blocks of each file.

    Raises:
        ConfigError: Fewer than two files, or another suffix.
    """
    if len(files) < 2 or any(file.suffix not in _RUN for file in files):
        raise ConfigError(
            f"time_files: files must be two or more of .onnx and .xml, got "
            f"{', '.join(map(str, files)) or 'none'}"
        )
    runs = {file: _RUN[file.suffix](file) for file in files}
    calls = {file: calls_for(partial(run, x), 0.05, "cpu") for file, run in runs.items()}
    seconds: dict[Path, list[float]] = {file: [] for file in files}
    with Load() as load:
        for _ in range(rounds):
            for file, run in runs.items():
                taken = time_block(partial(run, x), calls[file], "cpu")
                seconds[file].append(taken / calls[file])
    busy = load.others > BUSY
    report = Report(
        "Time on this processor",
        summary=f"8-bit units: {int8_units()}. Medians of {rounds} alternating blocks of CPU time. "
        + (f"Other programs used {load.others:.1f} cores: time again when they rest. " * busy)
        + "Below 8 bits weights are unfolded when a file loads, so it runs as in full precision.",
        columns={"ratio": Column("x the first", best="max"), "milliseconds": Column("CPU ms")},
        label="file",
    )
    first = seconds[files[0]]
    for file in files:
        ratios = [a / b for a, b in zip(first, seconds[file], strict=True)]
        median = statistics.median(seconds[file])
        megabytes = sum(f.stat().st_size for f in (file, file.with_suffix(".bin")) if f.exists())
        report.add(
            file.name, ratio=statistics.median(ratios), milliseconds=1e3 * median,
            megabytes=megabytes / 1e6,
        )  # fmt: skip
    return report
