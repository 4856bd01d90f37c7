"""What a model is made of: parameters and multiply-adds, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_macs", "count_parameters"]


def _product(_: Any, a: torch.Size, b: torch.Size, **__: Any) -> int:
    """Operations of a product of shapes [... n m] and [... m k]."""
    return 2 * a.numel() * b[-1]


# torch's counter knows products that return their result, not those that overwrite an operand.
_IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameters; shared ones count once, buffers do not count.

    Args:
        model: Any module.
        trainable: Count only those that require a gradient.

    Example:
        >>> count_parameters(nn.Linear(4, 2))
        10
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def count_macs(model: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Multiply-adds of one forward pass, by torch's own counter (its operations halved).

    Counted: matrix products, convolutions and attention, in whatever form the model calls them.
    **Not** counted: element-wise operations, normalisation, activations, pooling and resampling,
    gathers, scatters and sparse products (so a graph convolution counts as its dense layers only),
    and custom or Triton kernels. A module runs in eval mode without gradients and is put back.

    Args:
        model: A module or a function of tensors.
        *args: Its inputs; the batch counts, so pass one sample for a figure per sample.
        **kwargs: The same by name.

    Example:
        >>> count_macs(nn.Linear(4, 2), torch.zeros(3, 4))
        24
    """
    modes = []
    if isinstance(model, nn.Module):
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
    # The fused inference path of nn.TransformerEncoder is one operator that the counter cannot see.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Attention as plain products: older counters do not know its fused operators either.
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter,
        ):
            model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training
    return int(counter.get_total_flops()) // 2
