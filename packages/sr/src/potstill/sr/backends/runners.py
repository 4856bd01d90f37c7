"""Runners: networks made ready on PyTorch, ONNX Runtime or OpenVINO, chosen by name."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import ConfigError
from potstill.core.backends import Backend, Backends
from potstill.core.engine import resolve_device
from potstill.sr.backends.export import export_onnx
from potstill.sr.backends.onegraph import CompiledGraph
from potstill.sr.backends.precisions import DTYPES, check_precision
from potstill.sr.backends.staged import Staged
from potstill.sr.config import Precision
from potstill.sr.models.base import Upscaler
from potstill.sr.models.imdn import IMDN

__all__ = ["BACKENDS", "Precision", "Runner", "make_runner", "ready_runner"]


Function = Callable[[list[NDArray[Any]]], NDArray[Any]]
"""Called with the inputs of a graph; gives its output."""


class Runner:
    """A network made ready: call it with an image, and gates when these are known.

    Attributes:
        backend: Name of the backend.
        model: Network.
        stages: Stages of the network in PyTorch, which compute statistics over tiles whatever the
            backend is; None for networks without attention.
        precision: Numeric precision that it runs in.
        device: Device of the tensors.
    """

    backend: str

    def __init__(self, model: Upscaler, precision: Precision, device: torch.device) -> None:
        # A copy: the caller's network keeps its mode, device and dtype.
        self.model = copy.deepcopy(model).to(device, torch.float32).eval().requires_grad_(False)
        self.precision, self.device = precision, device
        self.stages: Staged | None = None
        if isinstance(self.model, IMDN):
            self.stages = Staged(self.model, dtype=DTYPES[precision])

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
        if compiled and isinstance(self.model, IMDN):
            if precision == "fp16":
                raise ConfigError("upscale: compile runs in fp32 or bf16, got fp16; use bf16")
            self._graph = CompiledGraph(self.model, bf16=precision == "bf16")

    @torch.inference_mode()
    def __call__(self, image: Tensor, gates: Tensor | None = None) -> Tensor:
        """Enlarge ``[1 3 h w]`` in [0, 1]."""
        if self._graph is not None:
            return self._graph(image, gates)
        if self.stages is not None:
            return self.stages(image, gates)
        return self.model(image)


class ExportedRunner(Runner):
    """A network that is exported as ONNX on first use: with gates as an input, or without."""

    def __init__(self, model: Upscaler, precision: Precision, device: torch.device) -> None:
        super().__init__(model, precision, device)
        self._functions: dict[bool, Function] = {}

    def __call__(self, image: Tensor, gates: Tensor | None = None) -> Tensor:
        """Enlarge ``[1 3 h w]`` in [0, 1]."""
        known = gates is not None
        if known not in self._functions:
            with tempfile.TemporaryDirectory() as folder:
                path = export_onnx(self.model, Path(folder, "network.onnx"), gates=known)
                self._functions[known] = self._open(path)
        given = [image] if gates is None else [image, gates]
        return torch.from_numpy(
            self._functions[known]([np.ascontiguousarray(value.numpy()) for value in given])
        )

    def _open(self, path: Path) -> Function:
        raise NotImplementedError


class OnnxRunner(ExportedRunner):
    """ONNX Runtime on the CPU, in float32."""

    backend = "onnx"

    def _open(self, path: Path) -> Function:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        names = [slot.name for slot in session.get_inputs()]
        return lambda values: session.run(None, dict(zip(names, values, strict=True)))[0]


class OpenVinoRunner(ExportedRunner):
    """OpenVINO on the CPU; its bf16 is faster than any other backend where the CPU has AMX."""

    backend = "openvino"

    def _open(self, path: Path) -> Function:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(str(path), "CPU", options)
        return lambda values: compiled(values)[0].copy()


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
        precision: "auto", "fp32", "bf16" or, on a GPU, "fp16". Half precisions keep the gates and
            the last layers in float32 with torch (all of the reconstruction, or the upsampler when
            compiled), and none with openvino.
        device: "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:<number>" or "mps".
        compiled: Let torch compile the network: seconds to minutes once, then faster.

    Raises:
        ConfigError: An unknown name, or a combination that does not exist.
        BackendError: A package or a device is missing; says what to install.
    """
    chosen = BACKENDS.resolve(backend)
    where = resolve_device("cpu" if device == "auto" and chosen.devices else device)
    options = {"compiled": compiled} if chosen.name == "torch" else {}
    runs = BACKENDS.resolve(chosen.name, where).run
    return runs(model, check_precision(model, chosen.name, precision, where), where, **options)


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
