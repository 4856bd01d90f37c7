"""A teacher that is asked about items of a data set, for a cache of what it says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from potstill.core.errors import ConfigError
from potstill.core.vocabulary.output import tensor_of
from potstill.core.vocabulary.teacher import Frozen

__all__ = ["Asking", "collate"]

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Asking:
    """The outputs of a teacher for items: in float32, on the CPU.

    Args:
        teacher: Called with the first entry of each item, or where that is a mapping with its
            entries by name; those that its ``forward`` does not know are left out.
        inputs: Names of the entries of a mapping that it gets, instead.
        output: Takes the tensor out of what it returns; else as `tensor_of` does.
        device: Device of the computation, unless a device map says that.
        precision: ``"fp32"``, or ``"bf16"`` and ``"fp16"`` by autocast.

    Raises:
        ConfigError: Another precision.
    """

    def __init__(
        self,
        teacher: nn.Module,
        inputs: Sequence[str] | None,
        output: Callable[[Any], Tensor] | None,
        device: str | torch.device,
        precision: str,
    ) -> None:
        if precision not in _DTYPES:
            raise ConfigError(
                f"TeacherCache: precision must be {', '.join(_DTYPES)}, got {precision!r}"
            )
        self.model = Frozen(teacher).to(device)
        self.output, self.device, self.dtype = output, torch.device(device), _DTYPES[precision]
        known = inspect.signature(self.model.model.forward).parameters.values()
        anything = any(parameter.kind == parameter.VAR_KEYWORD for parameter in known)
        self._names = None if anything and inputs is None else inputs or [p.name for p in known]

    def __call__(self, batch: Any) -> Tensor:
        """The output for a batch of `collate`."""
        from accelerate.utils import send_to_device

        batch = send_to_device(batch, self.device)
        with self._autocast():
            if isinstance(batch, Mapping):
                said = self.model(**{k: v for k, v in batch.items() if self._knows(k)})
            else:
                said = self.model(batch)
        return tensor_of(said, self.output).float().cpu()

    def _knows(self, name: str) -> bool:
        return self._names is None or name in self._names

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def collate(items: Sequence[Any]) -> Any:
    """What the teacher sees of items: mappings, or the first entry of tuples."""
    return default_collate([item if isinstance(item, Mapping) else item[0] for item in items])
