"""ONNX files with packed weights, and with 8-bit inputs of layers where they were calibrated."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import BackendError, ConfigError, atomic, to_onnx
from potstill.core.store import ExportError
from potstill.quant.files.packed import pack
from potstill.quant.weights.activations import SIDES, ActivationGrid, Side, activation_grids
from potstill.quant.weights.lower import Lowered, bake, lowered
from potstill.quant.weights.quantizers import LearnedStep

__all__ = ["LowFile", "disagreement", "export_onnx", "require_agreement", "run_onnx"]

_TYPES = {8: ("INT8", 13, 8), 4: ("INT4", 21, 10), 2: ("INT2", 25, 13)}  # opset, IR


class LowFile(NamedTuple):
    """A checked file.

    Attributes:
        path: The file.
        bytes: Its size.
        error: Root mean square of the difference to the student on real inputs, over the
            deviation of the student's outputs.
    """

    path: Path
    bytes: int
    error: float


def export_onnx(
    student: nn.Module,
    inputs: Sequence[Tensor],
    path: str | Path,
    *,
    dynamic: Mapping[int, str] | None = None,
    tolerance: float | None = None,
) -> LowFile:
    """Write a lowered student as ONNX: packed integers and ``DequantizeLinear``.

    Where `calibrate` has put inputs of layers onto 8-bit grids, these and no others are rounded in
    the file, by ``QuantizeLinear`` and ``DequantizeLinear``. 8 bits need opset 13 of a runtime, 3
    and 4 bits (as INT4) opset 21, 2 bits opset 25. Below 8 bits runtimes unfold the weights when
    they load: the file is small, and no faster.

    Args:
        student: A lowered model of learned steps, with one tensor argument.
        inputs: Real inputs; the file must agree with the student on each of them, in onnxruntime.
        path: Ends in ``.onnx``.
        dynamic: Dynamic axes of the input, as of `potstill.core.to_onnx`.
        tolerance: Largest error that is accepted: by default 0.001, and 0.05 where activations are
            rounded, since a value that falls to the other side of a step goes on as another level.

    Raises:
        ConfigError: A student that is not lowered, no input, or weights that ONNX has no type for.
        BackendError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: The model cannot be exported, or the file disagrees; no file is left.
    """
    weights = _writable(lowered(student), inputs)
    path, plain = Path(path), bake(student)
    with tempfile.TemporaryDirectory() as folder:
        full = to_onnx(plain, inputs[0], Path(folder, "full.onnx"), dynamic=dynamic or {}).path
        import onnx

        grids = {side: activation_grids(student, side) for side in SIDES}
        graph = _Graph(onnx.load(full), weights, grids)
    graph.rewrite()
    with atomic(path) as temporary:
        onnx.save(graph.model, temporary)
        error = disagreement(student, run_onnx(temporary), inputs)
        require_agreement("export_onnx", path, student, error, tolerance)
    return LowFile(path, path.stat().st_size, error)


def require_agreement(
    caller: str, path: Path, student: nn.Module, error: float, tolerance: float | None
) -> None:
    """Refuse a file whose error is too large.

    Raises:
        ExportError: Says what the error is.
    """
    rounded = bool(activation_grids(student))
    tolerance = (0.05 if rounded else 0.001) if tolerance is None else tolerance
    if not error <= tolerance:  # NaN too
        why = "; without VNNI 8-bit weights overflow in 16-bit sums: lower to Grid(bits=7)"
        raise ExportError(
            f"{caller}: {path.name} must agree with the student to {tolerance:g}, got an error of "
            f"{error:.3g}{why * rounded}"
        )


def run_onnx(path: str | Path) -> Callable[[Tensor], Tensor]:
    """A function that runs an ONNX file of one input and one output in onnxruntime, on the CPU."""
    try:
        import onnxruntime
    except ImportError as missing:
        raise BackendError(
            "run_onnx: onnxruntime must be installed; pip install 'potstill-quant[onnx]'"
        ) from missing
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        Path(path).read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.detach().cpu().numpy()})[0])

    return run


@torch.no_grad()
def disagreement(
    student: nn.Module, run: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]
) -> float:
    """Error of a file on real inputs, as `LowFile` has it."""
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    pairs = [(student(x).cpu().double(), run(x).double()) for x in inputs]
    for module, training in modes:
        module.training = training
    square = sum(float((a - b).square().sum()) for a, b in pairs)
    outputs = torch.cat([a.flatten() for a, _ in pairs])
    return (square / max(float((outputs - outputs.mean()).square().sum()), 1e-24)) ** 0.5


def _writable(weights: Sequence[Lowered], inputs: Sequence[Tensor]) -> Sequence[Lowered]:
    if not weights or not len(inputs):
        raise ConfigError(
            "export_onnx: student must be lowered and inputs hold real inputs, got "
            f"{len(weights)} lowered weights and {len(inputs)} inputs"
        )
    for each in weights:
        grid = each.quantizer.grid
        simple = isinstance(each.quantizer, LearnedStep) and grid.block is None and not grid.offset
        if not simple or grid.stored not in _TYPES:
            raise ConfigError(
                f"export_onnx: {each.key} must have 2 to 8 bits in learned steps of whole rows "
                f"with a zero, got {type(each.quantizer).__name__} of {grid}; use save_packed"
            )
    return weights


class _Graph:
    """An ONNX graph whose weights on a grid become integers."""

    def __init__(
        self,
        model: Any,
        weights: Sequence[Lowered],
        grids: Mapping[Side, Mapping[str, ActivationGrid]],
    ) -> None:
        self.model, self.weights, self.grids = model, weights, grids
        self.before: list[Any] = []  # nodes in front of all others
        self.of: dict[str, Lowered] = {}  # by initializer

    def rewrite(self) -> None:
        """Pack initializers that lie on the grid of a lowered weight, then round activations."""
        from onnx import numpy_helper

        graph = self.model.graph
        for tensor in list(graph.initializer):
            value = numpy_helper.to_array(tensor)
            if value.ndim < 2 or value.dtype != np.float32:
                continue
            for each in sorted(self.weights, key=lambda w: not tensor.name.endswith(w.key)):
                if found := _on_grid(value, each):
                    graph.initializer.remove(tensor)
                    self._pack(tensor.name, *found, each)
                    break
        lost = {each.key for each in self.weights} - {each.key for each in self.of.values()}
        if lost:
            raise ExportError(
                f"export_onnx: every lowered weight must be found in the graph, got no "
                f"{', '.join(sorted(lost))}; keep these at 32 bits"
            )
        self._round_activations()
        for node in reversed(self.before):
            graph.node.insert(0, node)
        for node in graph.node:  # stack traces of the exporter: more bytes than 4-bit weights
            del node.metadata_props[:]
            node.doc_string = ""
        del graph.value_info[:]  # of activations, which runtimes infer
        opset, version = max(_TYPES[e.quantizer.grid.stored][1:] for e in self.weights)
        for domain in self.model.opset_import:
            if domain.domain == "":
                domain.version = max(domain.version, opset)
        self.model.ir_version = max(self.model.ir_version, version)

    def _pack(self, name: str, integers: np.ndarray[Any, Any], axis: int, each: Lowered) -> None:
        """An initializer of integers, its scales, and the node that makes the old one of them."""
        from onnx import TensorProto, helper, numpy_helper

        bits = each.quantizer.grid.stored
        codes = pack(torch.from_numpy(integers.astype(np.int8)) & (2**bits - 1), bits)
        scale = _scale(each)
        self.model.graph.initializer.extend([
            helper.make_tensor(
                f"{name}.codes", getattr(TensorProto, _TYPES[bits][0]), integers.shape,
                codes.numpy().tobytes(), raw=True,
            ),
            numpy_helper.from_array(scale if len(scale) > 1 else scale[0], f"{name}.scale"),
        ])  # fmt: skip
        node = helper.make_node("DequantizeLinear", [f"{name}.codes", f"{name}.scale"], [name])
        if len(scale) > 1:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.before.append(node)
        self.of[name] = each

    def _round_activations(self) -> None:
        """Round what goes into the layers that were calibrated, and what comes out of them."""
        rounded: dict[tuple[str, str], str] = {}
        done: set[str] = set()
        for node in list(self.model.graph.node):
            weights = [name for name in node.input[1:2] if name in self.of]
            if not weights:
                continue
            path = self.of[weights[0]].path
            if path in self.grids["input"]:
                key = node.input[0], path
                if key not in rounded:
                    rounded[key] = f"{node.input[0]}.{path}.input"
                    self._round(node, 0, *key, rounded[key], self.grids["input"][path])
                node.input[0] = rounded[key]
                done.add(path)
            if path in self.grids["output"]:
                name = node.output[0]
                node.output[0] = f"{name}.wide"
                self._round(node, 1, f"{name}.wide", path, name, self.grids["output"][path])
        if lost := set(self.grids["input"]) - done:
            raise ExportError(
                f"export_onnx: inputs of {', '.join(sorted(lost))} must be found in the graph, got "
                "none; leave them out of calibrate(keep=...)"
            )

    def _round(
        self, node: Any, after: int, source: str, path: str, target: str, grid: ActivationGrid
    ) -> None:
        """Put ``target``, which is ``source`` rounded, before or after a node."""
        from onnx import helper, numpy_helper

        base = f"{source}.{path}"
        names = [f"{base}.step", f"{base}.zero"]
        values = np.float32(grid.scale.item()), np.uint8(grid.zero.item())
        self.model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(v), n) for v, n in zip(values, names, strict=True)
        )
        at = list(self.model.graph.node).index(node) + after
        make = helper.make_node
        self.model.graph.node.insert(at, make("QuantizeLinear", [source, *names], [f"{base}.q"]))
        made = make("DequantizeLinear", [f"{base}.q", *names], [target])
        self.model.graph.node.insert(at + 1, made)


def _scale(each: Lowered) -> np.ndarray[Any, Any]:
    assert isinstance(each.quantizer, LearnedStep)
    return each.quantizer.scale.detach().cpu().numpy().reshape(-1)


def _on_grid(value: np.ndarray[Any, Any], each: Lowered) -> tuple[np.ndarray[Any, Any], int] | None:
    """Integers and axis of rows, where all values are levels; exporters turn and cut weights."""
    grid, scale = each.quantizer.grid, _scale(each)
    for axis in _axes(value.ndim, grid.axis or 0):
        if len(scale) in (1, value.shape[axis]):
            shape = [-1 if k == axis else 1 for k in range(value.ndim)]
            steps = scale.reshape(shape) if len(scale) > 1 else scale
            integers = np.rint(value / steps).clip(grid.low, grid.high)
            if np.array_equal((integers * steps).astype(np.float32), value):
                return integers, axis
    return None


def _axes(dimensions: int, own: int) -> Iterator[int]:
    yield own
    if dimensions == 2:
        yield 1 - own
