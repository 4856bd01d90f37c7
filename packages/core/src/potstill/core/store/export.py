"""Export of a student to ONNX or to a ``torch.export`` program, checked before the file appears.

The check runs the exported program on the shape that it was exported with and, where an axis is
dynamic, on another one: an axis that torch has quietly fixed shows itself there.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from potstill.core.errors import BackendError, ConfigError, PotstillError, ShapeError
from potstill.core.files import atomic

__all__ = ["Export", "ExportError", "to_exported", "to_onnx"]

Axes = Mapping[int, str]
"""Names of the dynamic axes of one input, by number: ``{0: "batch", 2: "height"}``."""


class ExportError(PotstillError, RuntimeError):
    """A model that cannot be exported, or whose export computes something else."""


class Export(NamedTuple):
    """A checked export.

    Attributes:
        path: The file.
        error: Largest difference to the model, relative to the largest output, on the export shape.
        error_elsewhere: The same on another shape; None without dynamic axes.
    """

    path: Path
    error: float
    error_elsewhere: float | None


def to_onnx(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    dynamic: Axes | Sequence[Axes] = (),
    other: Tensor | Sequence[Tensor] | None = None,
    tolerance: float = 1e-4,
    opset: int | None = None,
) -> Export:
    """Write ``model`` as an ONNX file that agrees with it in onnxruntime.

    Args:
        model: Any module whose forward takes and returns tensors; exported in eval mode.
        example: Its inputs; at least 2 long on every dynamic axis, since torch fixes 0 and 1.
        path: Ends in ``.onnx``. Holds the weights, so the model must stay below 2 GB.
        dynamic: Dynamic axes of the input; one mapping per input when there are several. Axes of
            one name have one size.
        other: Inputs of another shape to check; by default the dynamic axes are doubled.
        tolerance: Largest relative difference that is accepted.
        opset: ONNX opset; torch's choice by default.

    Returns:
        The path, and the differences that were found.

    Raises:
        BackendError: onnx, onnxscript or onnxruntime is not installed.
        ConfigError: ``path`` has another suffix, or ``dynamic`` does not fit ``example``.
        ShapeError: A dynamic axis of ``example`` is shorter than 2.
        ExportError: The model cannot be exported, or the export disagrees; no file is left.
    """
    _require("to_onnx", "onnx", "onnxscript", "onnxruntime")
    inputs, axes = _arguments("to_onnx", example, dynamic, Path(path), ".onnx")

    def write(temporary: Path) -> Callable[..., list[Tensor]]:
        with warnings.catch_warnings():
            # torch says so when two axes have one name, which is what was asked for
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            # torch 2.11's exporter uses what torch 2.11 deprecates
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec", FutureWarning)
            program = torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                dynamic_shapes=tuple(dict(each) for each in axes),
                opset_version=opset,
                verbose=False,
            )
        assert program is not None  # torch's annotation is for the exporter of old
        program.save(str(temporary), external_data=False)
        return _onnx_session(temporary)

    return _export("to_onnx", model, inputs, axes, other, tolerance, Path(path), write)


def to_exported(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    dynamic: Axes | Sequence[Axes] = (),
    other: Tensor | Sequence[Tensor] | None = None,
    tolerance: float = 1e-4,
) -> Export:
    """Write ``model`` as a ``torch.export`` program that agrees with it once loaded again.

    Arguments, result and errors are those of `to_onnx`, but for ``path``, which ends in ``.pt2``;
    ``torch.export.load(path).module()`` runs it without the source code of the model.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "net.pt2")
        ...     export = to_exported(net, torch.randn(2, 3), path, dynamic={0: "batch"})
        ...     torch.export.load(path).module()(torch.randn(5, 3)).shape
        torch.Size([5, 4])
        >>> export.error < 1e-6
        True
    """
    inputs, axes = _arguments("to_exported", example, dynamic, Path(path), ".pt2")

    def write(temporary: Path) -> Callable[..., list[Tensor]]:
        shapes = tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in axes)
        torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), temporary)
        with warnings.catch_warnings():
            # torch 2.11 maps the file read-only and then warns about it
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            loaded = torch.export.load(temporary).module()
        return lambda *tensors: tree_leaves(loaded(*tensors))

    return _export("to_exported", model, inputs, axes, other, tolerance, Path(path), write)


def _export(
    name: str,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    axes: Sequence[Axes],
    other: Tensor | Sequence[Tensor] | None,
    tolerance: float,
    path: Path,
    write: Callable[[Path], Callable[..., list[Tensor]]],
) -> Export:
    """Write, run again, compare, and only then give the file its name."""
    elsewhere = _as_tuple(other) if other is not None else _double(inputs, axes)
    with atomic(path) as temporary, _evaluating(model):
        try:
            run = write(temporary)
        except Exception as error:  # exporters raise whatever broke inside of them
            reason = next(iter(str(error).strip().splitlines()), "")
            raise ExportError(
                f"{name}: {type(model).__name__} must be exportable, got {type(error).__name__}: "
                f"{reason}; Python branches that depend on values, and fixed axes, are in the way"
            ) from error
        errors = [
            _compare(name, model, run, tensors, tolerance)
            for tensors in ([inputs] if elsewhere is None else [inputs, elsewhere])
        ]
    return Export(path, errors[0], errors[1] if len(errors) > 1 else None)


def _compare(
    name: str,
    model: nn.Module,
    run: Callable[..., list[Tensor]],
    tensors: tuple[Tensor, ...],
    tolerance: float,
) -> float:
    """Largest difference between ``model`` and ``run``, relative to the largest output."""
    shapes = [list(tensor.shape) for tensor in tensors]
    who, remedy = "the model", "pass other= with a shape that it takes"
    try:
        expected = [leaf for leaf in tree_leaves(model(*tensors)) if isinstance(leaf, Tensor)]
        who, remedy = "the export", "is an axis fixed that should be dynamic?"
        found = run(*tensors)
    except Exception as trouble:
        reason = next(iter(str(trouble).strip().splitlines()), "")
        raise ExportError(
            f"{name}: {who} must run on inputs of shape {shapes}, got {reason}; {remedy}"
        ) from trouble
    worst = 0.0
    if len(expected) != len(found):
        raise ExportError(f"{name}: the model has {len(expected)} outputs, its export {len(found)}")
    for number, (a, b) in enumerate(zip(expected, found, strict=True)):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        if a.shape != b.shape:
            raise ExportError(
                f"{name}: output {number} on {shapes} must be {list(a.shape)} as in the model, got "
                f"{list(b.shape)}"
            )
        scale = a.abs().max().clamp_min(1e-12) if a.numel() else 1.0
        error = float(((a - b).abs() / scale).max()) if a.numel() else 0.0
        if not error <= tolerance:  # NaN too
            raise ExportError(
                f"{name}: output {number} on {shapes} must agree with the model to {tolerance:g}, "
                f"got a relative difference of {error:g}"
            )
        worst = max(worst, error)
    return worst


def _onnx_session(path: Path) -> Callable[..., list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns about its own graph optimisations
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )

    def run(*tensors: Tensor) -> list[Tensor]:
        names = [each.name for each in session.get_inputs()]
        arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(output) for output in outputs]

    return run


def _require(name: str, *packages: str) -> None:
    missing = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise BackendError(
            f"{name}: {', '.join(packages)} must be installed, got no {', '.join(missing)}; "
            "pip install 'potstill-core[export]'"
        )


def _as_tuple(example: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (example,) if isinstance(example, Tensor) else tuple(example)


def _arguments(
    name: str, example: Tensor | Sequence[Tensor], dynamic: Any, path: Path, suffix: str
) -> tuple[tuple[Tensor, ...], tuple[Axes, ...]]:
    """The inputs, and the dynamic axes of each, checked."""
    if path.suffix != suffix:
        raise ConfigError(f"{name}: path must end in {suffix}, got {path}")
    inputs = _as_tuple(example)
    axes = (dynamic,) if isinstance(dynamic, Mapping) else tuple(dynamic)
    axes = axes or ({},) * len(inputs)
    if len(axes) != len(inputs):
        raise ConfigError(
            f"{name}: dynamic must be one mapping for each of the {len(inputs)} inputs, got "
            f"{len(axes)}; use {{}} for an input without dynamic axes"
        )
    for number, (tensor, named) in enumerate(zip(inputs, axes, strict=True)):
        for axis in named:
            if not 0 <= axis < tensor.ndim:
                raise ConfigError(
                    f"{name}: dynamic must name axes 0 to {tensor.ndim - 1} of input {number}, got "
                    f"{axis}"
                )
            if tensor.shape[axis] < 2:
                raise ShapeError(
                    f"{name}: example must be at least 2 long on dynamic axis {axis} of input "
                    f"{number}, got {list(tensor.shape)}; torch would fix the axis at 1"
                )
    return inputs, axes


def _double(inputs: Sequence[Tensor], axes: Sequence[Axes]) -> tuple[Tensor, ...] | None:
    """The inputs with every dynamic axis twice as long, the second half reversed."""
    if not any(axes):
        return None
    doubled = []
    for tensor, named in zip(inputs, axes, strict=True):
        for axis in named:
            tensor = torch.cat([tensor, tensor.flip(axis)], dim=axis)
        doubled.append(tensor)
    return tuple(doubled)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
