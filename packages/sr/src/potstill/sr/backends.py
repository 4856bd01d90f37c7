"""Backends: who does the arithmetic. PyTorch, ONNX Runtime or OpenVINO, chosen by name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.core import ConfigError
from potstill.core.backends import Backend, Backends
from potstill.core.engine import resolve_device
from potstill.sr.models import IMDN, Upscaler
from potstill.sr.onegraph import CompiledGraph
from potstill.sr.staged import Staged

__all__ = [
    "BACKENDS",
    "Precision",
    "Runner",
    "export_onnx",
    "make_runner",
    "ready_runner",
]

Precision = Literal["fp32", "bf16"]


class Runner:
    """A network made ready: call it with an image, and gates when these are known.

    Attributes:
        backend: Name of the backend.
        model: The network.
        stages: Its stages in PyTorch, which compute statistics over tiles whatever the backend is;
            None for networks without attention.
        device: Where tensors must be.
    """

    backend: str

    def __init__(self, model: Upscaler, precision: Precision, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.device = device
        bf16 = precision == "bf16"
        self.stages = Staged(model, bf16=bf16) if isinstance(model, IMDN) else None

    def __call__(self, image: Tensor, gates: Tensor | None = None) -> Tensor:
        """Enlarge ``[1 3 h w]`` in [0, 1]."""
        raise NotImplementedError


class TorchRunner(Runner):
    """PyTorch: the stages, or the same network compiled."""

    backend = "torch"

    def __init__(
        self, model: Upscaler, precision: Precision, device: torch.device, compiled: bool
    ) -> None:
        super().__init__(model, precision, device)
        self._graph: CompiledGraph | None = None
        if compiled and isinstance(model, IMDN):
            self._graph = CompiledGraph(model, bf16=precision == "bf16")

    @torch.inference_mode()
    def __call__(self, image: Tensor, gates: Tensor | None = None) -> Tensor:
        """Enlarge ``[1 3 h w]`` in [0, 1]."""
        if self._graph is not None:
            return self._graph(image, gates)
        if self.stages is not None:
            return self.stages(image, gates)
        return self.model(image)


class OnnxRunner(Runner):
    """ONNX Runtime on the CPU, in float32."""

    backend = "onnx"

    def __init__(self, model: Upscaler, precision: Precision, device: torch.device) -> None:
        if precision != "fp32":
            raise ConfigError(
                f"upscale: backend 'onnx' runs in fp32 on the CPU, got {precision}; use backend "
                "'openvino' or 'torch'"
            )
        super().__init__(model, precision, device)
        self._sessions: dict[bool, Any] = {}

    def __call__(self, image: Tensor, gates: Tensor | None = None) -> Tensor:
        """Enlarge ``[1 3 h w]`` in [0, 1]."""
        known = gates is not None
        if known not in self._sessions:
            self._sessions[known] = _on_disk(self.model, known, self._open)
        session = self._sessions[known]
        values = [image.numpy(), *([gates.numpy()] if gates is not None else [])]
        feed = {
            slot.name: np.ascontiguousarray(v)
            for slot, v in zip(session.get_inputs(), values, strict=True)
        }
        return torch.from_numpy(session.run(None, feed)[0])

    @staticmethod
    def _open(path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


class OpenVinoRunner(Runner):
    """OpenVINO on the CPU; its bf16 is faster than any other backend where the CPU has AMX."""

    backend = "openvino"

    def __init__(self, model: Upscaler, precision: Precision, device: torch.device) -> None:
        super().__init__(model, precision, device)
        self.precision = precision
        self._compiled: dict[bool, Any] = {}

    def __call__(self, image: Tensor, gates: Tensor | None = None) -> Tensor:
        """Enlarge ``[1 3 h w]`` in [0, 1]."""
        known = gates is not None
        if known not in self._compiled:
            self._compiled[known] = _on_disk(self.model, known, self._open)
        values = [image.numpy(), *([gates.numpy()] if gates is not None else [])]
        feed = [np.ascontiguousarray(value) for value in values]
        return torch.from_numpy(self._compiled[known](feed)[0].copy())

    def _open(self, path: Path) -> Any:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        return openvino.Core().compile_model(str(path), "CPU", options)


BACKENDS: Backends[Callable[..., Runner]] = Backends(
    "upscale",
    Backend("torch", "PyTorch on any device; fp32, bf16, compiled", TorchRunner),
    Backend(
        "onnx",
        "ONNX Runtime; fp32",
        OnnxRunner,
        ("cpu",),
        ("onnx", "onnxscript", "onnxruntime"),
        install="pip install 'potstill-sr[onnx]'",
    ),
    Backend(
        "openvino",
        "OpenVINO; fp32, bf16",
        OpenVinoRunner,
        ("cpu",),
        ("openvino", "onnx", "onnxscript"),
        install="pip install 'potstill-sr[openvino]'",
    ),
)
"""Who runs a network, by name."""


def make_runner(
    model: Upscaler,
    backend: str = "torch",
    precision: Precision = "fp32",
    device: str = "auto",
    compiled: bool = False,
) -> Runner:
    """Make ``model`` ready on a backend.

    Args:
        model: A network of the family.
        backend: One of ``BACKENDS``; ``"auto"`` is torch.
        precision: "bf16" keeps the gates and the last layers in float32 with torch (all of the
            reconstruction, or the upsampler when compiled), and none with openvino.
        device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:<number>" or "mps".
        compiled: Let torch compile the network: seconds to minutes once, then faster.

    Raises:
        ConfigError: An unknown name, or a combination that does not exist.
        BackendError: A package or a device is missing; says what to install.
    """
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"upscale: precision must be fp32 or bf16, got {precision!r}")
    chosen = BACKENDS.resolve(backend)
    where = resolve_device("cpu" if device == "auto" and chosen.devices else device)
    options = {"compiled": compiled} if chosen.name == "torch" else {}
    return BACKENDS.resolve(chosen.name, where).run(model, precision, where, **options)


def ready_runner(
    model: Upscaler, backend: str, precision: Precision, device: str, compiled: bool
) -> Runner:
    """`make_runner`, keeping what took long to make for the next image of the same network."""
    if backend == "torch" and not compiled:
        return make_runner(model, backend, precision, device)
    # Training or moving the network makes what was kept worthless.
    state = tuple((0 if p.is_inference() else p._version, p.device) for p in model.parameters())
    return _kept_runner(model, state, torch.get_num_threads(), backend, precision, device, compiled)


@lru_cache(maxsize=2)
def _kept_runner(model: Upscaler, state: object, threads: int, *how: Any) -> Runner:
    del state, threads
    return make_runner(model, *how)


def _on_disk(model: Upscaler, known: bool, open_file: Callable[[Path], Any]) -> Any:
    """Export to a temporary file and open it."""
    with tempfile.TemporaryDirectory() as folder:
        return open_file(export_onnx(model, Path(folder, "network.onnx"), gates=known))


def export_onnx(model: Upscaler, path: str | Path, *, gates: bool = False) -> Path:
    """Write a network as ONNX with dynamic batch, height and width, compared with PyTorch first.

    Args:
        model: A network of the family.
        path: Ends in ``.onnx``.
        gates: Give the graph a second input ``[blocks channels]`` in place of its statistics, so
            that tiles can share gates.

    Raises:
        BackendError: onnx, onnxscript or onnxruntime is missing.
        ConfigError: Gates for a network without attention.
    """
    from potstill.core import to_onnx

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
    return to_onnx(model.cpu(), inputs, path, dynamic=dynamic, other=other).path
