"""Students for other programs: timm, official MAE and DMAE, ONNX, torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.core import ConfigError, to_exported, to_onnx
from potstill.mae.checkpoints import read_weights, write_folder, write_weights
from potstill.mae.config import Encoder
from potstill.mae.models.students import given, load_model

__all__ = ["convert"]


def convert(init: str, out: Path, form: Any, encoder: Encoder) -> str:
    """Write the student of ``init`` in ``form``; says in words what was done."""
    if form in ("onnx", "pt2"):
        head = (Path(init) / "classifier").is_dir()
        return _export_program(load_model(init, given(encoder), head=head).model, out, form)
    if form == "timm" and not out.suffix:
        write_folder(load_model(init, given(encoder), head=True).model, out)
        return f'wrote {out}/ for timm.create_model("local-dir:{out}", pretrained=True)'
    names = ("weights", "classifier", "model", "student/model", "classifier/model")
    files = [Path(init) / f"{name}.safetensors" for name in names]
    held = [file for file in files if file.is_file()]
    whole = held[0] if held else Path(init)
    weights = read_weights(whole)
    if form in ("mae", "dmae") and not weights.decoder:
        raise ConfigError(f"export: form {form} needs a decoder, but {init} has none; use timm")
    write_weights(weights, out, form)
    return f"wrote {out} ({form}, {out.stat().st_size / 1e6:.1f} MB)"


def _export_program(model: nn.Module, out: Path, form: str) -> str:
    embed: Any = model.patch_embed
    example = torch.randn(2, embed.proj.in_channels, *embed.img_size)
    export = (to_onnx if form == "onnx" else to_exported)(model, example, out, dynamic={0: "batch"})
    return (
        f"wrote {out}; largest relative difference {export.error:.1e}, on another batch size "
        f"{export.error_elsewhere:.1e}"
    )
