"""IMDN as one graph, in the form that ``torch.compile`` makes fastest.

The same network as ``IMDN.forward``, without gradients. What differs, and why:

- statistics come from one pass over a map: the compiler fuses both sums into the kernel that writes
  the map, where ``var_mean`` would read it a second time;
- in bf16 each block's inner convolutions take all channels of the map before them, those that are
  set aside with weights of zero: on CPUs with matrix units 64 channels are no slower than 48, and
  the slice that oneDNN would copy for every convolution is gone;
- weights have their dtype from the start, and become constants of the graph, in the layout that
  oneDNN wants ("freezing").
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.sr.models.blocks import InformationBlock, lrelu
from potstill.sr.models.imdn import IMDN

__all__ = ["CompiledGraph", "OneGraph"]


class OneGraph(nn.Module):
    """An IMDN or IMDN_AS for one image at a time, ready to be compiled.

    Args:
        model: The network; its weights are copied.
        bf16: Run all but the gates and the upsampler in bfloat16.
    """

    def __init__(self, model: IMDN, *, bf16: bool = False) -> None:
        super().__init__()
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)
        self.padded = bf16
        if bf16:
            for block in self._blocks():
                block.gate, gate = None, block.gate
                block.bfloat16()
                block.gate = gate
                for conv in (block.conv2, block.conv3, block.conv4):
                    zeros = (0, 0, 0, 0, block.kept, 0)
                    conv.weight = nn.Parameter(F.pad(conv.weight, zeros), requires_grad=False)
            for part in (self.model.head, self.model.collect, self.model.body_out):
                part.bfloat16()

    def _blocks(self) -> list[InformationBlock]:
        return list(self.model.blocks)  # type: ignore[arg-type]

    def forward(self, image: Tensor, gates: Tensor | None = None) -> Tensor:
        """Enlarge [1 3 h w]; with ``gates`` [blocks channels], statistics are not taken."""
        model = self.model
        shallow = y = model.head(image.to(self.dtype))
        total = None
        parts = model.collect.weight.split(model.channels, dim=1)
        for k, (block, part) in enumerate(zip(self._blocks(), parts, strict=True)):
            z = self._distill(block, y)
            gate = _gate(block, z) if gates is None else gates[k][None]
            y = block.fuse(z * gate.to(self.dtype)[:, :, None, None]) + y
            term = F.conv2d(y, part, model.collect.bias if total is None else None)
            total = term if total is None else total + term
        deep = model.body_out(lrelu(total)) + shallow  # type: ignore[arg-type]
        large = F.pixel_shuffle(model.upsampler(deep.float()), model.scale * model.stride)
        return large if model.skip is None else large + model.skip(image)

    def _distill(self, block: InformationBlock, x: Tensor) -> Tensor:
        """The four quarters before the gate, as `InformationBlock.distill` with padded weights."""
        quarters = []
        for conv in (block.conv1, block.conv2, block.conv3):
            y = lrelu(conv(x))
            quarters.append(y[:, : block.kept])
            x = y if self.padded else y[:, block.kept :]
        return torch.cat([*quarters, block.conv4(x)], dim=1)


def _gate(block: InformationBlock, z: Tensor) -> Tensor:
    """The gate from sums of values and of squares, rows first so that float32 suffices.

    Values are taken from the first pixel's, else a deviation that is small beside the mean would be
    lost in the difference of squares.
    """
    origin = z[:, :, :1, :1].float()
    gap = z.float() - origin
    mean = gap.mean(dim=3).mean(dim=2)
    variance = gap.square().mean(dim=3).mean(dim=2) - mean.square()
    assert block.gate is not None
    gate: Tensor = block.gate(mean + origin[:, :, 0, 0], variance)
    return gate


class CompiledGraph:
    """`OneGraph` compiled by torch: seconds to minutes at the first call and the second size.

    Call it without gradients: weights can be constants of the graph only there.
    """

    def __init__(self, model: IMDN, *, bf16: bool = False) -> None:
        self._graph = torch.compile(OneGraph(model, bf16=bf16))

    def __call__(self, image: Tensor, gates: Tensor | None = None) -> Tensor:
        """Enlarge [1 3 h w]."""
        from torch._inductor import config

        # As an option of torch.compile it comes too late: the weights are inputs by then.
        with config.patch(freezing=True):
            made: Tensor = self._graph(image.contiguous(memory_format=torch.channels_last), gates)
        return made
