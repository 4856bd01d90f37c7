"""One tensor out of whatever a model returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from potstill.core.errors import ShapeError

__all__ = ["TensorOutput", "tensor_of"]


def tensor_of(returned: Any, output: Callable[[Any], Tensor] | None = None) -> Tensor:
    """The tensor that a criterion compares, out of what a model returned.

    Args:
        returned: A tensor; or a tuple, a list, a mapping or a ``ModelOutput`` (Hugging Face) of
            which ``logits`` is taken, else the only entry that is not None.
        output: A function that takes the tensor out of ``returned``, instead of these rules.

    Raises:
        ShapeError: There is no tensor, or more than one entry that it could be.

    Example:
        >>> import torch
        >>> tensor_of({"logits": torch.ones(2), "loss": torch.zeros(())})
        tensor([1., 1.])
        >>> tensor_of((torch.ones(2), torch.zeros(2)), output=lambda pair: pair[0])
        tensor([1., 1.])
    """
    found = returned if output is None else output(returned)
    if output is None and not isinstance(found, Tensor):
        entries = {k: v for k, v in _entries(found).items() if v is not None}
        only = next(iter(entries.values())) if len(entries) == 1 else None
        found = entries.get("logits", only)
        if len(entries) > 1 and found is None:
            raise ShapeError(
                f"tensor_of: {type(returned).__name__} must have logits or a single entry, got "
                f"{', '.join(map(str, entries))}; choose one: output=lambda found: found[...], "
                "here or in TensorOutput(model, output=...)"
            )
    if not isinstance(found, Tensor):
        raise ShapeError(
            f"tensor_of: the output of a model must be a tensor, got {type(found).__name__}; "
            "pass output=, a function that takes the tensor out of what the model returns, here or "
            "in TensorOutput(model, output=...)"
        )
    return found


def _entries(returned: Any) -> dict[Any, Any]:
    if isinstance(returned, Mapping):
        return dict(returned)
    if hasattr(returned, "_asdict"):
        return returned._asdict()
    return dict(enumerate(returned)) if isinstance(returned, tuple | list) else {0: returned}


class TensorOutput(nn.Module):
    """A model that returns one tensor, as `tensor_of` takes it.

    Args:
        model: Any module; its parts are tapped as ``model.<path>``.
        output: A function that takes the tensor out of what the model returns.
    """

    def __init__(self, model: nn.Module, output: Callable[[Any], Tensor] | None = None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The tensor of interest."""
        return tensor_of(self.model(*args, **kwargs), self.output)
