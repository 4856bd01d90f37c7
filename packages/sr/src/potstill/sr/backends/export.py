"""Networks for other programs: ONNX, and safetensors under our names."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from potstill.core import ConfigError, to_onnx
from potstill.core.command import say
from potstill.sr.models.base import Upscaler
from potstill.sr.models.imdn import IMDN
from potstill.sr.models.weights import load_model, save_model

__all__ = ["export", "export_onnx"]


def export_onnx(model: Upscaler, path: str | Path, *, gates: bool = False) -> Path:
    """Write a network as ONNX with dynamic batch, height and width, compared with PyTorch first.

    Args:
        model: Network of the family.
        path: File that ends in ``.onnx``.
        gates: Second input ``[blocks channels]`` in place of statistics, so that tiles can share
            gates.

    Raises:
        BackendError: onnx, onnxscript or onnxruntime is missing.
        ConfigError: Gates for a network without attention.
    """
    if gates and not isinstance(model, IMDN):
        raise ConfigError(f"export_onnx: {type(model).__name__} has no gates; pass gates=False")
    unit = 8
    example = torch.rand(2, 3, 3 * unit, 4 * unit)
    # Batch and sides of a network with a strided head must not be fixed by the example.
    dynamic: list[dict[int, str]] = [{0: "batch", 2: "height", 3: "width"}]
    inputs = [example]
    if gates:
        inputs.append(torch.rand(len(model.blocks), model.channels))
        dynamic.append({})
    other = [torch.rand(1, 3, 2 * unit, unit), *inputs[1:]]
    own = copy.deepcopy(model).to("cpu", torch.float32).eval()  # the caller's stays as it is
    return to_onnx(own, inputs, path, dynamic=dynamic, other=other).path


def export(model: str, /, *, out: Path, gates: bool = False, half: bool = False) -> None:
    """Write a network for other programs.

    Args:
        model: Weight file or name.
        out: .onnx (dynamic batch and sides, checked), or .safetensors under our tensor names.
        gates: With .onnx: take the gates as a second input, so that tiles can share them.
        half: With .safetensors: store in half precision.

    Raises:
        ConfigError: Another suffix, or gates for a network without attention.
    """
    network = load_model(model)
    if out.suffix == ".onnx":
        export_onnx(network, out, gates=gates)
    elif out.suffix == ".safetensors":
        save_model(network, out, dtype=torch.float16 if half else torch.float32)
    else:
        raise ConfigError(f"export: out must end in .onnx or .safetensors, got {out}")
    say(f"written: {out}")
