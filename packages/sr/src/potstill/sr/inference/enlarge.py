"""`upscale`: enlarge any image with any network of the family, within a given memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from potstill.core import ConfigError
from potstill.sr.backends.runners import ready_runner
from potstill.sr.config import Alpha, Mode, Precision
from potstill.sr.inference.kinds import Kinds
from potstill.sr.inference.planes import Planes, Progress
from potstill.sr.inference.planning import Plan
from potstill.sr.models.base import Upscaler
from potstill.sr.models.weights import load_model

__all__ = ["Result", "upscale"]


@dataclass(frozen=True)
class Result:
    """An enlarged image and how it was made.

    Attributes:
        image: Image of the kind that was given: a `Picture` for a path, else PIL image, array or
            tensor.
        mode: Way in which statistics were shared.
        tile: Side of the tiles, 0 without.
        backend: Inference backend.
        precision: Numeric precision that it ran in.
        seconds: Wall time.
        peak_bytes: Most memory on top of what was in use before; on a CPU an upper bound, since
            the high-water mark of a process never falls.
        gates: Gates of the attention, [blocks channels], where they are known: ``exact``,
            ``recompute`` and ``gates``.
    """

    image: Any
    mode: Mode
    tile: int
    backend: str
    precision: Precision
    seconds: float
    peak_bytes: int
    gates: Tensor | None = None


def upscale(
    image: Any,
    model: Upscaler | str | os.PathLike[str] | None = None,
    *,
    scale: int | None = None,
    tile: int | Literal["auto", "none"] = "auto",
    tile_mode: Mode | Literal["auto"] = "auto",
    gates: Tensor | Sequence[Sequence[float]] | None = None,
    memory_limit: int | None = None,
    precision: Precision = "fp32",
    backend: str = "torch",
    device: str = "auto",
    compile: bool = False,
    align: Literal["pad", "acs"] = "pad",
    alpha: Alpha = "bicubic",
    keep_hidden: bool = False,
    self_ensemble: bool = False,
    progress: Progress | None = None,
    planned: Callable[[Plan], None] | None = None,
) -> Result:
    """Enlarge an image.

    Args:
        image: A path, a `Picture`, a PIL image, an array ``[H W]`` or ``[H W C]`` (uint8, uint16,
            or floating in [0, 1]; C is 1 to 4, the last of 2 or 4 being alpha), or a tensor
            ``[B 3 H W]`` in [0, 1]. Grey stays grey, but for tensors, which give what the network
            gives.
        model: Network, weight file, or name of weights that come with the package, which are the
            default.
        scale: Factor 2, 3 or 4; 2 by default. Must be the model's when one is given.
        tile: Side of tiles in pixels; "auto" cuts only when memory asks for it, "none" never.
        tile_mode: How tiles share statistics: "exact", "recompute" and (with the gates of the
            image) "gates" have no seams; "independent" is what other tools do. "auto" takes
            "exact", with its maps on the disk (below ``TMPDIR``) where memory is short.
        gates: Gates from the result of another image or an earlier run; implies "gates".
        memory_limit: Memory in bytes on top of the input; by default half of
            what is free on the device.
        precision: "auto", "fp32", "bf16" or "fp16"; auto is bf16 where the device has it.
        backend: Inference backend: "torch", "onnx" or "openvino".
        device: "auto", "cpu", "cuda" or "mps".
        compile: Compile the network with torch first: pays from a few images on.
        align: Way to sides that are multiples of 4, for IMDN_AS: "pad" mirrors the border, "acs"
            is the paper's adaptive cropping.
        alpha: Enlargement of transparency: "bicubic" matches what networks are trained on.
        keep_hidden: Enlarge the colour under clear pixels as it is; by default it is filled from
            the pixels that are seen, so that edges get no fringe.
        self_ensemble: Average over the eight orientations of the image: eight times the work.
        progress: Function of (done, total) units of work.
        planned: Function of the plan, called before anything is computed.

    Raises:
        ConfigError: An option that is unknown or contradicts another one.
        ShapeError: An array or tensor of another layout, range or dtype.
        DataError: A file that cannot be read.
        BackendError: A backend or a device that is not there.

    Example:
        >>> import numpy as np
        >>> photograph = np.zeros((6, 8, 3), np.uint8)
        >>> upscale(photograph, scale=3).image.shape
        (18, 24, 3)
    """
    network = _network(model, scale)
    runner = ready_runner(network, backend, precision, device, compile)
    planes = Planes(
        runner, tile, tile_mode, gates, memory_limit, align, self_ensemble,
        progress or (lambda done, total: None), planned or (lambda chosen: None),
    )  # fmt: skip
    kinds = Kinds(planes, alpha, keep_hidden)
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    on_gpu = runner.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(runner.device)
    enlarged = kinds(image)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(runner.device) if on_gpu else max(0, _peak() - before)
    chosen = planes.plan
    return Result(
        enlarged,
        chosen.mode,
        chosen.tile,
        runner.backend,
        runner.precision,
        seconds,
        peak,
        planes.found,
    )


def _network(model: Upscaler | str | os.PathLike[str] | None, scale: int | None) -> Upscaler:
    if isinstance(model, Upscaler):
        if scale is not None and scale != model.scale:
            raise ConfigError(
                f"upscale: scale must be {model.scale} like the model's, got {scale}; leave it out"
            )
        return model
    if model is not None:
        return _loaded(os.fspath(model), scale)
    if scale is not None and scale not in (2, 3, 4):
        raise ConfigError(f"upscale: scale must be 2, 3 or 4, got {scale!r}; or name weights")
    return _loaded(f"potstill-x{scale or 2}", scale)


@lru_cache(maxsize=4)
def _loaded(source: str, scale: int | None) -> Upscaler:
    return load_model(source, scale=scale)


def _peak() -> int:
    """High-water mark of this process, bytes."""
    try:
        import resource
    except ImportError:  # Windows keeps it elsewhere
        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
