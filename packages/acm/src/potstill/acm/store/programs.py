"""Export of a gated model: the graph skips what the gates skip, for any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from potstill.acm.layers.module import require_acms, restored
from potstill.core import ConfigError, to_exported, to_onnx
from potstill.core.store import Export

__all__ = ["export"]


def export(
    model: nn.Module,
    path: str | Path,
    example: Tensor,
    *,
    form: Literal["gathered", "dense_masked"] = "gathered",
    tolerance: float = 1e-4,
) -> Export:
    """Write a model in its present mode as ONNX (``.onnx``) or torch program (``.pt2``).

    The batch is dynamic; the file is checked on two batch sizes before it gets its name.

    Args:
        model: Adaptive model.
        path: File whose suffix says which kind.
        example: Images, [batch 3 height width]; at least two.
        form: ``"gathered"``: each learner runs on the tokens that chose it; ``"dense_masked"``: all
            run and a mask decides, for runtimes without data-dependent shapes. It saves nothing.
        tolerance: Largest relative difference that is accepted.

    Raises:
        ConfigError: Another suffix or form, or nothing adaptive.
        BackendError: onnx or onnxruntime is not installed.
        ExportError: The model cannot be exported, or the export disagrees.
    """
    suffix = Path(path).suffix
    if suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"export: path must end in .onnx or .pt2, got {str(path)!r}")
    if form not in ("gathered", "dense_masked"):
        raise ConfigError(f"export: form must be gathered or dense_masked, got {form!r}")
    write = to_onnx if suffix == ".onnx" else to_exported
    modules = require_acms(model, "export").values()
    with restored(modules, "backend"), torch.no_grad():
        for acm in modules:
            acm.backend = "gathered" if form == "gathered" else "torch"
        return write(model, example, path, dynamic={0: "batch"}, tolerance=tolerance)
