"""Colour planes through a network: padding, self-ensemble, tiles and progress."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import ConfigError, DataError
from potstill.sr.backends.precisions import exact_floats
from potstill.sr.backends.runners import Runner
from potstill.sr.config import Mode
from potstill.sr.images.metrics import LUMA
from potstill.sr.inference.cropping import adaptive_cropping
from potstill.sr.inference.planning import Plan, plan
from potstill.sr.inference.stepping import check_tiles, in_step
from potstill.sr.inference.tiling import (
    SAMPLES,
    Box,
    Frame,
    boxes,
    check_gates,
    exact,
    gated,
    gates_from_sample,
    gates_recomputed,
    plain,
)
from potstill.sr.models.foreign import Foreign
from potstill.sr.models.imdn import IMDN

__all__ = [
    "Planes",
    "Progress",
    "from_float",
    "out_of_memory",
    "reader",
    "release_memory",
    "to_float",
]

Progress = Callable[[int, int], None]
"""Called with (done, total) units of work."""

SMALLEST = 32
"""Side of the smallest tiles that are tried when memory is short."""

_INDEPENDENT_MARGIN = 10  # what other tools use by default


@dataclass
class Planes:
    """Enlarges ``[H W 3]`` of any dtype to ``[sH sW 3]`` of the same.

    The arguments are those of `potstill.sr.upscale`.

    Attributes:
        plan: Plan of the last image.
        found: Gates of the last image, [blocks channels], where its mode knows them.

    Raises:
        ConfigError: An option that is unknown or contradicts another one.
    """

    runner: Runner
    tile: int | Literal["auto", "none"]
    tile_mode: Mode | Literal["auto"]
    gates: Tensor | Sequence[Sequence[float]] | None
    memory_limit: int | None
    align: Literal["pad", "acs"]
    self_ensemble: bool
    progress: Progress
    planned: Callable[[Plan], None]
    plan: Plan = field(init=False)
    found: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        tile, runner = self.tile, self.runner
        if not (tile in ("auto", "none") or (isinstance(tile, int) and tile >= 8)):
            raise ConfigError(
                f"upscale: tile must be 'auto', 'none' or at least 8 pixels, got {tile!r}; try 256"
            )
        if self.tile_mode not in ("auto", *get_args(Mode)):
            raise ConfigError(
                f"upscale: tile_mode must be one of auto, {', '.join(get_args(Mode))}, got "
                f"{self.tile_mode!r}"
            )
        if self.align not in ("pad", "acs"):
            raise ConfigError(f"upscale: align must be pad or acs, got {self.align!r}")
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

    @property
    def scale(self) -> int:
        """Factor of enlargement."""
        return self.runner.model.scale

    def __call__(
        self, color: NDArray[Any], *, clip: bool = True, grey: bool = False
    ) -> NDArray[Any]:
        """Enlarge; ``clip`` keeps floating values in [0, 1], ``grey`` gives equal channels."""
        if not self.self_ensemble:
            return self._once(color, clip, grey)
        values = to_float(color)
        parts = (
            _turned_back(self._once(_turned(values, orientation), clip, grey), orientation) / 8
            for orientation in range(8)
        )
        return from_float(reduce(np.add, parts), color.dtype)

    def _once(self, color: NDArray[Any], clip: bool, grey: bool) -> NDArray[Any]:
        runner, stride = self.runner, self.runner.model.stride
        h, w = color.shape[:2]
        if stride > 1 and (h % stride or w % stride):
            if self.align == "acs":
                self.plan = Plan("independent", max(h, w) // 2, 0)
                made = torch.from_numpy(to_float(adaptive_cropping(runner, color)))
                return from_float((_grey(made) if grey else made).numpy(), color.dtype)
            padding = ((0, -h % stride), (0, -w % stride), (0, 0))
            color = np.pad(color, padding, mode="symmetric")
        rows, columns = color.shape[0] // stride, color.shape[1] // stride
        out = np.empty((color.shape[0] * self.scale, color.shape[1] * self.scale, 3), color.dtype)
        read, write = reader(color, runner.device), writer(out, clip, grey)
        frame = Frame(Box(0, 0, rows, columns), stride, stride * self.scale, read, write)
        tile = self.tile
        while True:
            try:
                with exact_floats(runner.device):
                    self._run(frame, tile)
                break
            except (MemoryError, RuntimeError) as error:
                smaller = self._smaller()
                if not out_of_memory(error) or smaller is None:
                    raise
                tile = smaller
            release_memory()  # not before the error and its frames are gone
        return out[: h * self.scale, : w * self.scale]

    @torch.inference_mode()
    def _run(self, frame: Frame, tile_side: int | Literal["auto", "none"]) -> None:
        """Enlarge by the plan."""
        runner = self.runner
        h, w = frame.size.bottom * frame.stride, frame.size.right * frame.stride
        self.plan = plan(
            runner.model,
            h,
            w,
            tile=tile_side,
            tile_mode="gates" if self.gates is not None else self.tile_mode,
            memory_limit=self.memory_limit,
            precision=runner.precision,
            device=runner.device,
            stages=runner.backend == "torch",
        )
        self.planned(self.plan)
        mode, stages = self.plan.mode, runner.stages
        tile, radius = max(1, self.plan.tile // frame.stride), runner.model.radius
        step = self._steps(frame, tile, mode)
        if mode == "none":
            plain(runner, frame, max(frame.size), 0, step)
        elif mode == "exact" and isinstance(runner.model, Foreign):
            check_tiles(runner, runner.model)
            tiles = in_step if runner.model.shares else plain
            tiles(runner, frame, tile, radius, step)
        elif mode == "independent" or stages is None:
            plain(runner, frame, tile, _INDEPENDENT_MARGIN if stages else radius, step)
        elif mode == "exact":
            self.found = exact(stages, frame, tile, step, mapped=self.plan.mapped)
        else:
            if self.gates is not None:
                self.found = check_gates(self.gates, stages)
            else:
                find = gates_recomputed if mode == "recompute" else gates_from_sample
                self.found = find(stages, frame, tile, step)
            gated(runner, self.found, frame, tile, radius, step)

    def _smaller(self) -> int | None:
        """Side of tiles to try when memory was short, or None when nothing is left to try."""
        if self.tile == "none" or self.tile_mode == "none":
            return None
        side = 256 if self.plan.mode == "none" else self.plan.tile // 2
        return side if side >= SMALLEST else None

    def _steps(self, frame: Frame, tile: int, mode: Mode) -> Callable[[], None]:
        """What counts units of work for the progress."""
        tiles = 1 if mode == "none" else sum(1 for _ in boxes(frame.size, tile))
        passes = {"exact": tiles, "recompute": tiles}.get(mode, 0)
        if mode == "gates" and self.gates is None:
            passes = min(SAMPLES, tiles)
        stages, done = self.runner.stages, count(1)
        total = tiles + (0 if stages is None else len(stages.blocks) * passes)
        return lambda: self.progress(next(done), total)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        said in text for said in ("out of memory", "not enough memory", "can't allocate memory")
    )


def release_memory() -> None:
    """Give back what a failed image has left behind, on the host and on GPUs."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def reader(color: NDArray[Any], device: torch.device) -> Callable[[Box], Tensor]:
    """What gives rectangles of ``[H W 1 or 3]`` as ``[1 3 h w]`` in [0, 1]."""

    def read(box: Box) -> Tensor:
        part = to_float(color[box.top : box.bottom, box.left : box.right])
        part = part if part.shape[2] == 3 else part.repeat(3, axis=2)
        return torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1)))[None].to(device)

    return read


def _grey(values: Tensor) -> Tensor:
    """Three channels as their luma, [H W 3] to the same: Y of the result is that of the values."""
    weights = values.new_tensor(LUMA) / sum(LUMA)
    return (values @ weights)[..., None].expand_as(values)


def writer(out: NDArray[Any], clip: bool, grey: bool) -> Callable[[Box, Tensor], None]:
    """What puts rectangles into ``out``, ``[H W 3]``, or ``[H W 1]`` of what is grey."""

    def write(box: Box, large: Tensor) -> None:
        values = large[0].float().permute(1, 2, 0).cpu()
        if not torch.isfinite(values).all():
            raise DataError(
                "upscale: the network must give finite values, got NaN or infinite ones; its "
                "weights are damaged, or overflow in this precision"
            )
        values = _grey(values)[..., : out.shape[2]] if grey else values
        target = out[box.top : box.bottom, box.left : box.right]
        if out.dtype.kind == "u":
            peak = np.iinfo(out.dtype).max
            target[:] = values.clamp(0, 1).mul(peak).round_().numpy().astype(out.dtype)
        else:
            target[:] = (values.clamp(0, 1) if clip else values).numpy()

    return write


def to_float(values: NDArray[Any]) -> NDArray[np.float32]:
    """Bytes and 16-bit values as floats in [0, 1]."""
    if values.dtype.kind == "u":
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return values.astype(np.float32, copy=False)


def from_float(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Floats in ``dtype``: clipped to [0, 1], scaled and rounded where that is unsigned."""
    if np.dtype(dtype).kind == "u":
        values = np.round(values.clip(0, 1) * np.iinfo(dtype).max)
    return values.astype(dtype)


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    values = np.rot90(values, orientation % 4)
    return values[:, ::-1] if orientation >= 4 else values


def _turned_back(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    values = values[:, ::-1] if orientation >= 4 else values
    return np.rot90(values, -(orientation % 4))
