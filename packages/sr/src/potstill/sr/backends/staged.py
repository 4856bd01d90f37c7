"""IMDN taken apart into stages, for fast inference of whole images and of tiles.

Training and export use ``IMDN.forward``. This is the same arithmetic without gradients, arranged
for memory traffic, since on a CPU the convolutions are only part of the time:

- maps are ``channels_last``; statistics come from one library call that reads a map at memory speed
  (``torch.var_mean`` takes as long there as a 3x3 convolution of 64 channels);
- the gate is folded into the 1x1 convolution: ``W (g * z) = (W diag(g)) z``;
- that convolution is a matrix product which adds to the residual stream in place, and so is the
  collection of all blocks, so that no 6 x 64-channel map exists;
- the four quarters of a block are written into one map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from potstill.sr.models.blocks import SLOPE, InformationBlock
from potstill.sr.models.imdn import IMDN

__all__ = ["Moments", "Staged", "merged", "moments"]

_STRIP = 4096
"""Pixels that float32 adds up at a time."""


class Moments(NamedTuple):
    """Mean and sum of squared deviations per channel over a number of pixels, in float64.

    Attributes:
        pixels: Number of pixels.
        mean: ``[C]``.
        squares: ``[C]``; divided by ``pixels`` the population variance.
    """

    pixels: int
    mean: Float[Tensor, " channels"]
    squares: Float[Tensor, " channels"]

    @property
    def variance(self) -> Tensor:
        """Population variance, ``[C]``."""
        return self.squares / self.pixels


def moments(z: Float[Tensor, "1 channels h w"]) -> Moments:
    """Moments of one map.

    On a CPU ``batch_norm_update_stats`` is the statistics half of batch normalization, vectorized
    for channels_last. It adds up in float32, so it gets strips of a few thousand pixels, and these
    are merged in float64. Elsewhere one reduction does it, in float32 whatever the map is in.
    """
    if z.device.type != "cpu":
        return _reduced(z)
    parts = []
    for strip in z.split(max(1, _STRIP // z.shape[3]), dim=2):
        mean, variance = torch.batch_norm_update_stats(strip, None, None, 0.1)
        count = strip.shape[2] * strip.shape[3]
        parts.append(Moments(count, mean, variance * count))
    return merged(parts)


def _reduced(z: Tensor) -> Moments:
    """Moments by one reduction, which adds up in a tree; MPS has no float64."""
    variance, mean = torch.var_mean(z.float(), dim=(2, 3), correction=0)
    if z.device.type == "mps":
        variance, mean = variance.cpu(), mean.cpu()
    pixels = z.shape[2] * z.shape[3]
    return Moments(pixels, mean[0].double(), variance[0].double() * pixels)


def merged(parts: Sequence[Moments]) -> Moments:
    """Moments of all pixels of several parts.

    Source: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", COMPSTAT 1982, Eq. (2.1), for many parts at once: squares about the common mean. No
    cancellation, however many tiles.
    """
    pixels = sum(part.pixels for part in parts)
    means = torch.stack([part.mean for part in parts]).double()
    counts = means.new_tensor([[part.pixels] for part in parts])
    mean = (means * counts).sum(0) / pixels
    within = torch.stack([part.squares for part in parts]).double().sum(0)
    return Moments(pixels, mean, within + ((means - mean).square() * counts).sum(0))


class Staged:
    """The stages of an IMDN or IMDN_AS for one image at a time, without gradients.

    A map is ``[1 C H W]`` in channels_last. Functions with a trailing underscore write to their
    first map.

    Args:
        model: Network; its weights are copied, so later changes to it have no effect here.
        dtype: Type of head and blocks; the reconstruction stays in float32.
    """

    def __init__(self, model: IMDN, *, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.dtype = dtype
        parameter = next(model.parameters())
        self.device = parameter.device
        self.blocks: list[InformationBlock] = list(model.blocks)  # type: ignore[arg-type]
        self._kernels = {
            (k, name): self._packed(getattr(block, name).weight)
            for k, block in enumerate(self.blocks)
            for name in ("conv1", "conv2", "conv3", "conv4")
        }
        self._biases = {
            (k, name): getattr(block, name).bias.detach().to(self.dtype)
            for k, block in enumerate(self.blocks)
            for name in ("conv1", "conv2", "conv3", "conv4", "fuse")
        }
        parts = model.collect.weight.detach().flatten(1).split(model.channels, dim=1)
        self._parts = [part.t().to(self.dtype) for part in parts]
        self._out = self._packed(model.body_out.weight, torch.float32)
        self._up = self._packed(model.upsampler.weight, torch.float32)

    def _packed(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        weight = weight.detach().to(dtype or self.dtype)
        return weight.contiguous(memory_format=torch.channels_last)

    def head(self, x: Float[Tensor, "1 3 h w"]) -> Tensor:
        """Shallow features of an image."""
        y = self.model.head(x.contiguous(memory_format=torch.channels_last))
        return y.to(self.dtype, memory_format=torch.channels_last)

    def distill(self, k: int, x: Tensor) -> Tensor:
        """The four quarters of block ``k`` before its gate."""
        kept = self.blocks[k].kept
        z = torch.empty_like(x, memory_format=torch.channels_last)
        y = x
        for number, name in enumerate(("conv1", "conv2", "conv3")):
            y = F.conv2d(y, self._kernels[k, name], self._biases[k, name], padding=1)
            y = F.leaky_relu_(y, SLOPE)
            z[:, number * kept : (number + 1) * kept] = y[:, :kept]
            y = y[:, kept:]
        z[:, 3 * kept :] = F.conv2d(
            y, self._kernels[k, "conv4"], self._biases[k, "conv4"], padding=1
        )
        return z

    def gate(self, k: int, found: Moments) -> Float[Tensor, " channels"]:
        """The gate of block ``k``, from the statistics of what it distilled."""
        gate = self.blocks[k].gate
        assert gate is not None
        mean, variance = (x.to(gate.down.weight)[None] for x in (found.mean, found.variance))
        return gate(mean, variance)[0]

    def fuse_(self, x: Tensor, k: int, z: Tensor, gate: Tensor) -> Tensor:
        """Block ``k``'s output in place of its input: ``x += (W diag(g)) z + b``."""
        weight = self.blocks[k].fuse.weight.detach().flatten(1) * gate
        flat = _flat(x)
        flat.addmm_(_flat(z), weight.t().to(self.dtype)).add_(self._biases[k, "fuse"])
        return x

    def collect_(self, total: Tensor, k: int, y: Tensor) -> Tensor:
        """Add block ``k``'s share of the 1x1 convolution over all blocks."""
        _flat(total).addmm_(_flat(y), self._parts[k])
        return total

    def collected(self, x: Tensor) -> Tensor:
        """Where `collect_` starts: the bias of that convolution, everywhere."""
        total = torch.empty_like(x, memory_format=torch.channels_last)
        bias = self.model.collect.bias
        assert bias is not None
        _flat(total).copy_(bias.detach().to(self.dtype).expand(_flat(total).shape))
        return total

    def tail(self, total: Tensor, shallow: Tensor, image: Tensor) -> Float[Tensor, "1 3 H W"]:
        """The enlarged image; writes to ``total``."""
        model = self.model
        deep = F.conv2d(
            F.leaky_relu_(total, SLOPE).float(), self._out, model.body_out.bias, padding=1
        )
        deep += shallow
        large = F.conv2d(deep, self._up, model.upsampler.bias, padding=1)
        large = F.pixel_shuffle(large, model.scale * model.stride)
        return large if model.skip is None else large.add_(model.skip(image))

    @torch.no_grad()
    def __call__(self, image: Tensor, gates: Tensor | None = None) -> Tensor:
        """Enlarge one image [1 3 H W]; with ``gates`` given, statistics are not taken."""
        shallow = self.head(image)
        x = shallow.clone(memory_format=torch.channels_last)
        total = self.collected(x)
        for k in range(len(self.blocks)):
            z = self.distill(k, x)
            gate = self.gate(k, moments(z)) if gates is None else gates[k]
            self.fuse_(x, k, z, gate)
            del z
            self.collect_(total, k, x)
        del x
        return self.tail(total, shallow, image)


def _flat(x: Tensor) -> Tensor:
    """A channels_last map as rows of pixels, sharing memory."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])
