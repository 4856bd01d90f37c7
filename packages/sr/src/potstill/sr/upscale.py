"""`upscale`: enlarge any image with any network of the family, within a given memory."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from potstill.core import ConfigError
from potstill.sr.acs import adaptive_cropping
from potstill.sr.backends import Precision, Runner, ready_runner
from potstill.sr.checks import check_array, check_tensor
from potstill.sr.images import Picture, picture_of, read_image
from potstill.sr.models import IMDN, Upscaler
from potstill.sr.tiling import (
    MODES,
    Box,
    Frame,
    TileMode,
    boxes,
    check_gates,
    exact,
    gated,
    gates_from_sample,
    gates_recomputed,
    plain,
)
from potstill.sr.weights import load_model

__all__ = ["Plan", "Result", "plan", "upscale"]

Progress = Callable[[int, int], None]
"""Called with (done, total) units of work."""

_TILE = 256
_INDEPENDENT_MARGIN = 10  # what other tools use by default
_WHOLE_MAPS = 8  # maps alive at the peak of a pass over the whole image, measured
_EXACT_MAPS = 3
_TILE_MAPS = 9


@dataclass(frozen=True)
class Plan:
    """How an image will be enlarged, decided before anything starts.

    Attributes:
        mode: One of ``MODES``.
        tile: Side of the tiles, feature pixels; 0 without tiles.
        bytes: Estimated memory on top of the input.
    """

    mode: TileMode
    tile: int
    bytes: int


@dataclass(frozen=True)
class Result:
    """An enlarged image and how it was made.

    Attributes:
        image: Of the kind that was given: a `Picture` for a path, else PIL image, array or tensor.
        mode: How statistics were shared: one of ``MODES``.
        tile: Side of the tiles, 0 without.
        backend: Who computed.
        precision: In what arithmetic.
        seconds: Wall time.
        peak_bytes: Most memory on top of what was in use before; on a CPU an upper bound, since
            the high-water mark of a process never falls.
        gates: [blocks channels] of the attention where they are known: ``exact``, ``recompute``
            and ``gates``.
    """

    image: Any
    mode: TileMode
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
    tile_mode: TileMode | Literal["auto"] = "auto",
    gates: Tensor | Sequence[Sequence[float]] | None = None,
    memory_limit: int | None = None,
    precision: Precision = "fp32",
    backend: str = "torch",
    device: str = "auto",
    compile: bool = False,
    align: Literal["pad", "acs"] = "pad",
    alpha: Literal["lanczos", "network"] = "lanczos",
    self_ensemble: bool = False,
    progress: Progress | None = None,
    planned: Callable[[Plan], None] | None = None,
) -> Result:
    """Enlarge an image.

    Args:
        image: A path, a `Picture`, a PIL image, an array ``[H W]`` or ``[H W C]`` (uint8, uint16,
            or floating in [0, 1]; C is 1 to 4, the last of 2 or 4 being alpha), or a tensor
            ``[B 3 H W]`` in [0, 1].
        model: A network, a weight file, or a name; our own weights of factor ``scale`` by default.
        scale: 2, 3 or 4; 2 by default. Must be the model's when one is given.
        tile: Side of tiles in pixels; "auto" cuts only when memory asks for it, "none" never.
        tile_mode: "exact", "recompute" and (with the gates of the image) "gates" have no seams;
            "independent" is what other tools do. "auto" takes "exact", or "gates" with a warning
            when even that needs too much memory.
        gates: Gates to use, from the result of another image or an earlier run; implies "gates".
        memory_limit: Bytes that may be used on top of the input; half of what is free by default.
        precision: "fp32" or "bf16".
        backend: "torch", "onnx" or "openvino".
        device: "auto", "cpu", "cuda" or "mps".
        compile: Compile the network with torch first: pays from a few images on.
        align: For networks that need sides that are multiples of 4 (IMDN_AS): "pad" mirrors
            the border, "acs" is the paper's adaptive cropping.
        alpha: How transparency is enlarged; colour is premultiplied meanwhile.
        self_ensemble: Average over the eight orientations of the image: eight times the work.
        progress: Called with (done, total).
        planned: Called with mode, tile and memory before anything is computed.

    Raises:
        ConfigError: An option that is unknown or contradicts another one.
        ShapeError: An array or tensor of another layout, range or dtype.
        DataError: A file that cannot be read.
        BackendError: A backend or a device that is not there.

    Example:
        >>> photograph = np.zeros((6, 8, 3), np.uint8)
        >>> upscale(photograph, scale=3).image.shape
        (18, 24, 3)
    """
    network = _network(model, scale)
    runner = ready_runner(network, backend, precision, device, compile)
    options = _Options(
        tile,
        tile_mode,
        gates,
        memory_limit,
        align,
        alpha,
        self_ensemble,
        progress or _silent,
        planned or (lambda chosen: None),
    )
    options.check(runner)
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    if runner.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    job = _Job(runner, options)
    enlarged = job.dispatch(image)
    peak = torch.cuda.max_memory_allocated() if runner.device.type == "cuda" else _peak() - before
    assert job.plan is not None
    return Result(
        enlarged,
        job.plan.mode,
        job.plan.tile,
        runner.backend,
        precision,
        time.perf_counter() - start,
        max(0, peak),
        job.gates,
    )


def plan(
    network: Upscaler,
    height: int,
    width: int,
    *,
    tile: int | Literal["auto", "none"] = "auto",
    tile_mode: TileMode | Literal["auto"] = "auto",
    memory_limit: int | None = None,
    precision: Precision = "fp32",
    stages: bool = True,
) -> Plan:
    """Decide on mode and tile, warning where the mode is an approximation.

    Args:
        network: The network.
        height: Of the input, pixels.
        width: Of the input, pixels.
        tile: As in `upscale`.
        tile_mode: As in `upscale`.
        memory_limit: Bytes; half of what is free by default.
        precision: As in `upscale`.
        stages: Whether the backend can run block by block, which "exact" needs.

    Example:
        >>> plan(IMDN(2), 100, 100, tile="none").mode
        'none'
        >>> plan(IMDN(2), 4000, 3000, memory_limit=2**34).mode
        'exact'
    """
    limit = memory_limit or psutil.virtual_memory().available // 2
    stride, scale = network.stride, network.scale
    area = math.ceil(height / stride) * math.ceil(width / stride)
    cell = network.channels * (2 if precision == "bf16" else 4)
    output = 12 * height * width * scale**2

    def need(mode: str, side: int) -> int:
        if mode == "none":
            return area * cell * _WHOLE_MAPS + output
        margin = 2 * (4 if mode == "exact" else network.radius)
        piece = min((side + margin) ** 2, area) * cell * _TILE_MAPS
        return piece + output // 4 + (area * cell * _EXACT_MAPS if mode == "exact" else 0)

    if tile == "none" or tile_mode == "none":
        return Plan("none", 0, need("none", 0))
    side = _TILE if tile == "auto" else tile
    if tile == "auto" and tile_mode == "auto" and need("none", 0) <= limit:
        return Plan("none", 0, need("none", 0))
    if tile_mode != "auto":
        return Plan(tile_mode, side, need(tile_mode, side))
    if not isinstance(network, IMDN) or (stages and need("exact", side) <= limit):
        return Plan("exact", side, need("exact", side))
    side = 128 if tile == "auto" and need("gates", side) > limit else side
    warnings.warn(
        f"upscale: {width} x {height} pixels need {need('exact', side) / 2**30:.1f} GiB to be "
        f"exact and {limit / 2**30:.1f} GiB may be used, so attention is estimated from a sample "
        "of tiles (mode 'gates'); tile_mode='recompute' is exact in little memory, and slower",
        stacklevel=3,
    )
    return Plan("gates", side, need("gates", side))


@dataclass(frozen=True)
class _Options:
    tile: int | Literal["auto", "none"]
    tile_mode: TileMode | Literal["auto"]
    gates: Any
    memory_limit: int | None
    align: str
    alpha: str
    self_ensemble: bool
    progress: Progress
    planned: Callable[[Plan], None]

    def check(self, runner: Runner) -> None:
        """Refuse what cannot be, before anything starts."""
        tile = self.tile
        if not (tile in ("auto", "none") or (isinstance(tile, int) and tile >= 8)):
            raise ConfigError(
                f"upscale: tile must be 'auto', 'none' or at least 8 pixels, got {tile!r}; try 256"
            )
        if self.tile_mode not in (*MODES, "auto"):
            raise ConfigError(
                f"upscale: tile_mode must be one of auto, {', '.join(MODES)}, got "
                f"{self.tile_mode!r}"
            )
        if self.align not in ("pad", "acs") or self.alpha not in ("lanczos", "network"):
            raise ConfigError(
                f"upscale: align must be pad or acs and alpha lanczos or network, got "
                f"{self.align!r} and {self.alpha!r}"
            )
        if self.memory_limit is not None and self.memory_limit < 2**24:
            raise ConfigError(
                f"upscale: memory_limit must be bytes, at least 16 MiB, got {self.memory_limit}"
            )
        if self.tile_mode == "exact" and runner.backend != "torch":
            raise ConfigError(
                f"upscale: tile_mode 'exact' needs backend 'torch', got {runner.backend!r}; "
                "'recompute' is exact with every backend"
            )
        attentive = isinstance(runner.model, IMDN)
        if not attentive and (self.gates is not None or self.tile_mode in ("recompute", "gates")):
            raise ConfigError(
                f"upscale: {type(runner.model).__name__} has no gates; tile_mode 'exact' needs none"
            )
        if self.gates is not None and self.tile_mode not in ("auto", "gates"):
            raise ConfigError(
                f"upscale: tile_mode must be 'gates' when gates are given, got {self.tile_mode!r}"
            )


class _Job:
    """One call of `upscale`: from any kind of image to the same kind."""

    def __init__(self, runner: Runner, options: _Options) -> None:
        self.runner = runner
        self.options = options
        self.plan: Plan | None = None
        self.gates: Tensor | None = None
        self.scale = runner.model.scale

    def dispatch(self, image: Any) -> Any:
        if isinstance(image, str | os.PathLike):
            return self.picture(read_image(image))
        if isinstance(image, Picture):
            return self.picture(image)
        if isinstance(image, Image.Image):
            return self.picture(picture_of(image)).to_pil()
        if isinstance(image, Tensor):
            return self.tensor(check_tensor(image))
        if isinstance(image, np.ndarray):
            return self.array(check_array(image))
        raise ConfigError(
            f"upscale: image must be a path, a PIL image, an array or a tensor, got "
            f"{type(image).__name__}"
        )

    def picture(self, picture: Picture) -> Picture:
        """Colour by the network; alpha apart, with the colour premultiplied by it."""
        alpha = picture.alpha
        if alpha is None:
            return replace(picture, color=self.planes(picture.color))
        peak = picture.peak
        if bool((alpha == peak).all()):
            color = self.planes(picture.color)
            return replace(picture, color=color, alpha=np.full(color.shape[:2], peak, alpha.dtype))
        share = alpha.astype(np.float32)[..., None] / peak
        large_color = self.planes(picture.color.astype(np.float32) / peak * share)
        if self.options.alpha == "network":
            large_alpha = self.planes(np.repeat(share, 3, axis=2)).mean(axis=2).clip(0, 1)
        else:
            large_alpha = _lanczos(share[..., 0], self.scale)
        seen = np.maximum(large_alpha, 0.5 / peak)[..., None]
        color = np.where(large_alpha[..., None] > 0, large_color / seen, 0).clip(0, 1)
        return replace(
            picture, color=_to_dtype(color, alpha.dtype), alpha=_to_dtype(large_alpha, alpha.dtype)
        )

    def array(self, array: NDArray[Any]) -> NDArray[Any]:
        """Arrays of 1 to 4 channels, with or without a channel axis."""
        planes = array[..., None] if array.ndim == 2 else array
        color = planes[..., : 1 if planes.shape[2] < 3 else 3]
        alpha = planes[..., -1] if planes.shape[2] in (2, 4) else None
        kind: Literal["L", "RGB"] = "L" if color.shape[2] == 1 else "RGB"
        color = np.repeat(color, 3, axis=2) if kind == "L" else color
        if alpha is None or array.dtype.kind == "f":
            large = self.planes(np.ascontiguousarray(color))
            if kind == "L":
                large = _grey(large)
            if alpha is not None:
                soft = _lanczos(alpha.astype(np.float32), self.scale).astype(array.dtype)
                large = np.dstack([large, soft])
        else:
            made = self.picture(Picture(np.ascontiguousarray(color), alpha, kind))
            assert made.alpha is not None
            large = np.dstack([_grey(made.color) if kind == "L" else made.color, made.alpha])
        return large[..., 0] if array.ndim == 2 else large

    def tensor(self, tensor: Tensor) -> Tensor:
        """A batch, image by image: the statistics of attention are each image's own."""
        device, dtype = tensor.device, tensor.dtype
        planes = tensor.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        large = [torch.from_numpy(self.planes(np.ascontiguousarray(p), clip=False)) for p in planes]
        return torch.stack(large).permute(0, 3, 1, 2).to(device, dtype).contiguous()

    def planes(self, color: NDArray[Any], *, clip: bool = True) -> NDArray[Any]:
        """``[H W 3]`` of any dtype to ``[sH sW 3]`` of the same."""
        if not self.options.self_ensemble:
            return self._planes(color, clip)
        values = _to_float(color)
        total: NDArray[np.float32] | None = None
        for orientation in range(8):
            large = self._planes(np.ascontiguousarray(_turned(values, orientation)), clip)
            back = (_turned_back(large, orientation) / 8).astype(np.float32)
            total = back if total is None else total + back
        assert total is not None
        return (
            _to_dtype(total, color.dtype) if color.dtype.kind == "u" else total.astype(color.dtype)
        )

    def _planes(self, color: NDArray[Any], clip: bool) -> NDArray[Any]:
        runner, stride = self.runner, self.runner.model.stride
        h, w = color.shape[:2]
        if stride > 1 and (h % stride or w % stride):
            if self.options.align == "acs":
                self.plan = Plan("independent", max(h, w) // 2, 0)
                return adaptive_cropping(runner, color)
            padding = ((0, -h % stride), (0, -w % stride), (0, 0))
            color = np.pad(color, padding, mode="symmetric")
        rows, columns = color.shape[0] // stride, color.shape[1] // stride
        out = np.empty((color.shape[0] * self.scale, color.shape[1] * self.scale, 3), color.dtype)
        frame = Frame(
            Box(0, 0, rows, columns),
            stride,
            stride * self.scale,
            _reader(color, runner.device),
            _writer(out, clip),
        )
        self.run(frame)
        return out[: h * self.scale, : w * self.scale]

    @torch.inference_mode()
    def run(self, frame: Frame) -> None:
        """Enlarge by the plan."""
        runner, options = self.runner, self.options
        h, w = frame.size.bottom * frame.stride, frame.size.right * frame.stride
        self.plan = plan(
            runner.model,
            h,
            w,
            tile=options.tile,
            tile_mode="gates" if options.gates is not None else options.tile_mode,
            memory_limit=options.memory_limit,
            precision="bf16" if runner.stages and runner.stages.dtype == torch.bfloat16 else "fp32",
            stages=runner.backend == "torch",
        )
        options.planned(self.plan)
        mode, stages = self.plan.mode, runner.stages
        tile = max(1, self.plan.tile // frame.stride)
        radius = runner.model.radius
        step = _Steps(frame, tile, mode, 0 if stages is None else len(stages.blocks), options)
        if mode == "none":
            plain(runner, frame, max(frame.size), 0, step)
        elif mode == "independent" or stages is None:
            plain(runner, frame, tile, _INDEPENDENT_MARGIN if stages else radius, step)
        elif mode == "exact":
            self.gates = exact(stages, frame, tile, step)
        else:
            if options.gates is not None:
                self.gates = check_gates(options.gates, stages)
            elif mode == "recompute":
                self.gates = gates_recomputed(stages, frame, tile, step)
            else:
                self.gates = gates_from_sample(stages, frame, tile, step)
            gated(runner, self.gates, frame, tile, radius, step)


class _Steps:
    """Counts units of work for the progress."""

    def __init__(
        self, frame: Frame, tile: int, mode: TileMode, blocks: int, options: _Options
    ) -> None:
        count = 1 if mode == "none" else sum(1 for _ in boxes(frame.size, tile))
        extra = {"exact": blocks, "recompute": blocks}.get(mode, 0) * count
        if mode == "gates" and options.gates is None:
            extra = blocks * min(9, count)
        self.done, self.total, self.progress = 0, count + (extra if blocks else 0), options.progress

    def __call__(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)


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


def _reader(color: NDArray[Any], device: torch.device) -> Callable[[Box], Tensor]:
    def read(box: Box) -> Tensor:
        part = _to_float(color[box.top : box.bottom, box.left : box.right])
        return torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)))[None].to(device)

    return read


def _writer(out: NDArray[Any], clip: bool) -> Callable[[Box, Tensor], None]:
    def write(box: Box, large: Tensor) -> None:
        values = large[0].float().permute(1, 2, 0).cpu()
        target = out[box.top : box.bottom, box.left : box.right]
        if out.dtype.kind == "u":
            peak = np.iinfo(out.dtype).max
            target[:] = values.clamp(0, 1).mul_(peak).round_().numpy().astype(out.dtype)
        else:
            target[:] = (values.clamp(0, 1) if clip else values).numpy()

    return write


def _to_float(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype.kind == "u":
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return values.astype(np.float32, copy=False)


def _to_dtype(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    peak = np.iinfo(dtype).max
    return np.round(values.clip(0, 1) * peak).astype(dtype)


def _grey(color: NDArray[Any]) -> NDArray[Any]:
    """The channels of a replicated grey image, averaged: [H W 3] -> [H W 1]."""
    mean = color.mean(axis=2, keepdims=True)
    return (np.round(mean) if color.dtype.kind == "u" else mean).astype(color.dtype)


def _lanczos(plane: NDArray[Any], scale: int) -> NDArray[np.float32]:
    """A plane in [0, 1] by Lanczos; opaque and clear areas stay exactly 1 and 0."""
    size = (plane.shape[1] * scale, plane.shape[0] * scale)
    large = Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(large).clip(0, 1)


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    values = np.rot90(values, orientation % 4)
    return values[:, ::-1] if orientation >= 4 else values


def _turned_back(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    values = values[:, ::-1] if orientation >= 4 else values
    return np.rot90(values, -(orientation % 4))


def _silent(done: int, total: int) -> None:
    del done, total


def _peak() -> int:
    """High-water mark of this process, bytes."""
    try:
        import resource
    except ImportError:  # Windows keeps it elsewhere
        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
