"""Networks of other architectures, loaded by spandrel from their own files."""

from __future__ import annotations

import math
import os
from typing import ClassVar

import torch
from torch import Tensor, nn

from potstill.core import BackendError, ConfigError, DataError
from potstill.sr.models.base import Upscaler
from potstill.sr.models.reductions import Reductions, Statistics, own_statistics

__all__ = ["Foreign", "load_foreign"]

_SIDES, _THIN = (64, 256, 1024), 8  # pixels of the strips on which what is seen is measured


class _Once:
    """Whether something was done, known to all copies of a network."""

    done = False

    def __deepcopy__(self, memo: object) -> _Once:
        return self


class Foreign(Upscaler):
    """Any network from RGB in [0, 1] to RGB, as a network that `potstill.sr.upscale` takes.

    What an output sees is measured, means over whole maps held fixed. Where there are such means
    (channel attention, squeeze and excitation, instance and group normalization), tiles are
    computed in step and share them, which is exact.

    Args:
        network: Called with ``[1 3 h w]``; gives ``[1 3 scale*h scale*w]``.
        scale: Factor.
        stride: Sides of inputs must be multiples of it.
        name: Architecture, for messages.

    Attributes:
        shares: Number of means over whole maps.
        checked: Tiles were compared with a whole strip.

    Raises:
        ConfigError: An output sees more than can be measured, or the network gives another size.
    """

    architecture: ClassVar[str] = "foreign"

    def __init__(self, network: nn.Module, scale: int, stride: int = 1, name: str = "") -> None:
        super().__init__()
        self.network = network.eval()
        self.scale = scale
        self.stride = stride  # type: ignore[misc]  # here a fact of the instance
        self.name = name or type(network).__name__
        self.blocks = nn.ModuleList()
        widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
        self.channels = max(widths, default=64)
        self.shares, self._radius = _measured(self)
        self.checked = _Once()

    @property
    def radius(self) -> int:
        """Feature pixels that an output sees to each side, means over whole maps held fixed."""
        return self._radius

    def forward(self, x: Tensor) -> Tensor:
        """[1 3 h w] -> [1 3 scale*h scale*w]."""
        made = self.network(x.clone())  # some write to their input
        return made[0] if isinstance(made, tuple | list) else made


def load_foreign(path: str | os.PathLike[str]) -> Foreign:
    """A network that spandrel knows, from its own file.

    Raises:
        BackendError: spandrel is not installed.
        ConfigError: It does not know the file, or the network is none from RGB to RGB.
    """
    try:
        import spandrel
    except ImportError as error:
        raise BackendError(
            f"load_model: {path} is no IMDN; other architectures need spandrel: pip install "
            "'potstill-sr[spandrel]'"
        ) from error
    try:
        found = spandrel.ModelLoader("cpu").load_from_file(os.fspath(path))
    except spandrel.UnsupportedModelError as error:
        raise ConfigError(
            f"load_model: {path} must be weights of IMDN or of an architecture that spandrel knows"
        ) from error
    except Exception as error:  # unpickling fails in many ways
        raise DataError(f"load_model: {path} must be whole weights, got: {error}") from error
    single = isinstance(found, spandrel.ImageModelDescriptor)
    if not single or (found.input_channels, found.output_channels) != (3, 3):
        raise ConfigError(
            f"load_model: {path} must be a network from RGB to RGB, got {found.architecture.name} "
            f"with {found.input_channels} inputs and {found.output_channels} outputs"
        )
    needs = found.size_requirements
    network = found.model.float().requires_grad_(False)
    return Foreign(network, found.scale, needs.multiple_of, found.architecture.name)


def _measured(model: Foreign) -> tuple[int, int]:
    """Means over whole maps, and feature pixels that an output sees, by gradients in float64.

    All outputs across the middle of a long strip are added up, since what they see may differ;
    random inputs let no path vanish. Statistics count as constants.
    """
    before = next(model.network.parameters()).dtype
    model.network.double()
    try:
        shares, down = _reach(model, tall=True)
        return shares, max(down, _reach(model, tall=False)[1])
    finally:
        model.network.to(before)


def _reach(model: Foreign, *, tall: bool) -> tuple[int, int]:
    """The same along one axis."""
    stride, scale = model.stride, model.scale
    thin = stride * math.ceil(_THIN / stride)
    for side in _SIDES:
        long = stride * max(4, side // stride)
        h, w = (long, thin) if tall else (thin, long)
        rng = torch.Generator().manual_seed(0)
        x = torch.rand(1, 3, h, w, generator=rng, dtype=torch.float64).requires_grad_()
        seen: list[Tensor] = []

        def fixed(values: Tensor, seen: list[Tensor] = seen) -> Statistics:
            seen.append(values)
            return own_statistics(values, detach=True)

        with torch.enable_grad(), Reductions(fixed):
            y = model(x)
        if list(y.shape) != [1, 3, scale * h, scale * w]:
            raise ConfigError(
                f"load_model: {model.name} must enlarge {w} x {h} by {scale}, got {list(y.shape)}"
            )
        axis, middle = (2 if tall else 3), long // stride // 2
        core = y.narrow(axis, middle * stride * scale, stride * scale)
        (slope,) = torch.autograd.grad(core.sum(), x)
        hit = (slope != 0).any(5 - axis).flatten(0, 1).any(0).nonzero().flatten() // stride
        low, high = (int(hit.min()), int(hit.max())) if len(hit) else (middle, middle)
        if low > 0 and high < long // stride - 1:
            return len(seen), max(middle - low, high - middle)
    raise ConfigError(
        f"load_model: an output of {model.name} must see fewer than {_SIDES[-1] // 2} pixels to "
        "each side, means over whole maps aside, to be tiled; it is not supported"
    )
