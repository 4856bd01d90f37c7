"""OpenVINO files: 8-bit weights, and 8-bit inputs of layers where they were calibrated."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.core import BackendError, ConfigError, staging
from potstill.quant.files.onnx import LowFile, disagreement, export_onnx, require_agreement
from potstill.quant.weights.lower import lowered

__all__ = ["export_openvino", "run_openvino"]


def export_openvino(
    student: nn.Module,
    inputs: Sequence[Tensor],
    path: str | Path,
    *,
    dynamic: Mapping[int, str] | None = None,
    tolerance: float | None = None,
) -> LowFile:
    """Write a lowered student for OpenVINO: the file of `export_onnx`, converted and run again.

    Args:
        student: A lowered model of learned steps, with one tensor argument.
        inputs: Real inputs; the file must agree with the student on each of them.
        path: Ends in ``.xml``; the weights stand beside it in ``.bin``.
        dynamic: Dynamic axes of the input.
        tolerance: Largest error that is accepted, as of `export_onnx`.

    Raises:
        ConfigError: Another suffix, 2-bit weights, which OpenVINO does not read, or what
            `export_onnx` refuses.
        BackendError: onnx, onnxscript, onnxruntime or openvino is not installed.
        ExportError: The file disagrees; none is left.
    """
    path, openvino = Path(path), _openvino()
    narrow = [each.key for each in lowered(student) if each.quantizer.grid.stored < 4]
    if path.suffix != ".xml" or narrow:
        raise ConfigError(
            f"export_openvino: path must end in .xml and weights have 3 bits or more, got {path} "
            f"and {len(narrow)} narrower weights; use export_onnx or save_packed"
        )
    with tempfile.TemporaryDirectory() as folder:
        # OpenVINO computes as the student does, whatever onnxruntime's 16-bit sums make of it
        onnx = export_onnx(
            student, inputs, Path(folder, "student.onnx"), dynamic=dynamic, tolerance=float("inf")
        ).path
        model = openvino.convert_model(onnx)
    with staging(path.parent) as temporary:
        openvino.save_model(model, temporary / path.name, compress_to_fp16=False)
        error = disagreement(student, run_openvino(temporary / path.name), inputs)
        require_agreement("export_openvino", path, student, error, tolerance)
        files = [path.with_suffix(".bin"), path]
        for file in files:
            (temporary / file.name).replace(file)
    return LowFile(path, sum(file.stat().st_size for file in files), error)


def run_openvino(path: str | Path) -> Callable[[Tensor], Tensor]:
    """A function that runs a file of one input and one output in OpenVINO, in float32 or int8."""
    openvino = _openvino()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(compiled(x.detach().cpu().numpy())[0].copy())

    return run


def _openvino():  # type: ignore[no-untyped-def]
    try:
        import openvino
    except ImportError as missing:
        raise BackendError(
            "potstill.quant: openvino must be installed; pip install 'potstill-quant[openvino]'"
        ) from missing
    return openvino
