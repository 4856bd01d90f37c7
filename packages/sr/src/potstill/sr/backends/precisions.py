"""Precisions: which one a network runs in on a device, said where it is another than asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch

from potstill.core import ConfigError
from potstill.sr.config import Precision
from potstill.sr.models.base import Upscaler
from potstill.sr.models.imdn import IMDN

__all__ = ["DTYPES", "check_precision", "exact_floats", "fast_bf16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Type of the maps in each precision."""


def fast_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16: AVX512-BF16, AMX, or Arm's.

    Without them torch's convolutions in bfloat16 take several times as long as in float32.
    """
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def check_precision(
    model: Upscaler, backend: str, precision: str, device: torch.device
) -> Precision:
    """The precision that a network will run in.

    "auto" takes bfloat16 where the device has instructions for it, else float32.

    Raises:
        ConfigError: An unknown precision, or one that the backend or the device cannot run.
    """
    if precision not in get_args(Precision):
        raise ConfigError(
            f"upscale: precision must be one of {', '.join(get_args(Precision))}, got {precision!r}"
        )
    able = isinstance(model, IMDN) if backend == "torch" else backend == "openvino"
    if precision == "auto":
        return "bf16" if able and _has_bf16(backend, device) else "fp32"
    if backend == "onnx" and precision != "fp32":
        raise ConfigError(
            f"upscale: backend 'onnx' runs in fp32 on the CPU, got {precision}; use backend "
            "'openvino' or 'torch'"
        )
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("upscale: precision fp16 needs a GPU, got the CPU; use bf16 or fp32")
    if precision == "fp32":
        return "fp32"
    if not able:
        warnings.warn(
            f"upscale: {type(model).__name__} runs in fp32 with backend {backend!r}: there is no "
            f"{precision} for it",
            stacklevel=3,
        )
        return "fp32"
    if not _has_bf16(backend, device) and precision == "bf16":
        if backend == "openvino":
            warnings.warn(
                "upscale: this CPU has no bfloat16, so OpenVINO runs in fp32", stacklevel=3
            )
            return "fp32"
        warnings.warn(
            "upscale: bf16 has no instructions on this device and is several times slower than "
            "fp32; use precision='fp32' or 'auto'",
            stacklevel=3,
        )
    return precision  # type: ignore[return-value]  # one of the literals, checked above


def _has_bf16(backend: str, device: torch.device) -> bool:
    if backend == "openvino":
        import openvino

        found = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "BF16" in found
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and fast_bf16()


@contextmanager
def exact_floats(device: torch.device) -> Iterator[None]:
    """Convolutions and products of float32 in float32 on a GPU, not in TF32, which has 10 bits."""
    if device.type != "cuda":
        yield
        return
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
