"""What the layers of a model get as input while calibration inputs pass through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import DataError

__all__ = ["columns", "pass_through"]


@torch.no_grad()
def pass_through(
    caller: str,
    model: nn.Module,
    inputs: Iterable[Any],
    modules: Mapping[str, nn.Module],
    see: Callable[[str, Tensor], None],
    outputs: bool = False,
) -> list[str]:
    """Run the model in eval mode, and show the first input of each module, or its output.

    Args:
        caller: Name for messages.
        model: The model.
        inputs: Its inputs: tensors, tuples of arguments, or mappings of named ones.
        modules: Modules to look at, by path.
        see: Called with path and tensor, as often as a module runs.
        outputs: Show outputs.

    Returns:
        Paths of modules that never ran: their weights are used by the forward of another one.

    Raises:
        DataError: There is no input, or an input of a layer that is not finite.
    """
    ran: set[str] = set()

    def hook(path: str) -> Callable[..., None]:
        def look(_: nn.Module, arguments: Any, output: Any = None) -> None:
            tensor, side = (output, "output") if outputs else (arguments[0], "input")
            if not torch.isfinite(tensor).all():
                raise DataError(f"{caller}: {side} of {path} must be finite, got NaN or infinity")
            ran.add(path)
            see(path, tensor)

        return look

    count = 0
    with _evaluating(model):
        handles = [
            each.register_forward_hook(hook(path))
            if outputs
            else each.register_forward_pre_hook(hook(path))
            for path, each in modules.items()
        ]
        try:
            for count, each in enumerate(inputs, 1):  # noqa: B007
                if isinstance(each, Mapping):
                    model(**each)
                else:
                    model(*((each,) if isinstance(each, Tensor) else each))
        finally:
            for handle in handles:
                handle.remove()
    if count == 0:
        raise DataError(f"{caller}: inputs must hold at least one batch, got none")
    return [path for path in modules if path not in ran]


def columns(module: nn.Module, x: Tensor) -> Tensor | None:
    """Inputs as the weight's rows see them: [groups positions inputs]; None where that is unknown.

    A layer's output is ``columns @ rows.T`` in each of its groups.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding: Any = module.padding if module.padding_mode == "zeros" else 0
        if padding == "same":
            x = F.pad(x, module._reversed_padding_repeated_twice)
        if isinstance(padding, str):
            padding = 0
        x = x if x.ndim == 4 else x[None]
        patches = F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
        grouped = patches.reshape(len(x), module.groups, -1, patches.shape[-1])
        return grouped.permute(1, 0, 3, 2).flatten(1, 2)
    return None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
