"""A GPU that is not there: its tensors compute on the CPU and refuse to meet those of the CPU.

What goes wrong first on a real GPU is a tensor that was left behind. With this device every test
machine sees that. It says nothing about kernels, streams or speed. It needs a process of its own,
since torch registers a device once and for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


def _inference_mode(mode: Any = True) -> Any:
    """Without gradients only: tensors of inference mode cannot be wrapped."""
    return nullcontext() if mode is False else torch.no_grad(*[mode] * callable(mode))


torch.inference_mode = _inference_mode

aten = torch.ops.aten
_MAY_MIX = {  # what CUDA allows: copies, and indices from the CPU
    aten._index_put_impl_.default,
    aten._to_copy.default,
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
}


_WAITING = {  # what CUDA must have finished, since its result goes to the CPU or has a size
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
}
waits: Counter[str] = Counter()
"""How often the CPU has waited for the device, by operation."""
listeners: list[Callable[[], None]] = []
"""Told whenever the CPU waits."""


def _wait(name: str) -> None:
    waits[name] += 1
    for told in listeners:
        told()


class _Device(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("pretend", backend_module=_Device())
GPU = torch.device("pretend:0")


class OnGPU(Tensor):
    """A tensor that says it is on the GPU; `inner` is where its numbers are."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGPU:
        shape: dict[str, Any] = {"dispatch_layout": True}
        if inner.layout == torch.strided:
            shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            dtype=inner.dtype,
            device=GPU,
            **shape,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        """As on a GPU: a copy to the CPU."""
        _wait("tolist")
        return self.inner.tolist()

    def __format__(self, form: str) -> str:
        return format(self.inner.item() if self.dim() == 0 else self.inner, form)

    def __repr__(self) -> str:
        return f"OnGPU({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.layout.default:
        return args[0].inner.layout
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    here = [value for value in tensors if isinstance(value, OnGPU)]
    left = [value for value in tensors if not isinstance(value, OnGPU) and value.dim()]
    if here and left and func not in _MAY_MIX:
        raise RuntimeError(
            f"{func} got {[list(value.shape) for value in here]} on the GPU and "
            f"{[list(value.shape) for value in left]} on the CPU"
        )
    target = torch.device(kwargs.get("device") or (GPU if here else "cpu"))
    if _waits(func, args, kwargs, here, target):
        _wait(str(func))
    args_inside, kwargs_inside = tree_map(_inside, (args, kwargs))
    kwargs_inside |= {"device": torch.device("cpu")} if kwargs.get("device") else {}
    result = func(*args_inside, **kwargs_inside)
    schema = func._schema
    if schema.is_mutable and schema.returns and all(r.alias_info for r in schema.returns):
        named = dict(zip([a.name for a in schema.arguments], args, strict=False)) | kwargs
        same = [named[a.name] for a in schema.arguments if a.is_write]
        return same[0] if len(schema.returns) == 1 else tuple(same)
    return result if target.type == "cpu" else tree_map(_outside, result)


def _waits(func: Any, args: Any, kwargs: dict[str, Any], here: list[Any], target: Any) -> bool:
    if func is aten._to_copy.default:  # from or to pageable memory
        return bool(here) != (target.type != "cpu") and not kwargs.get("non_blocking")
    if func is aten.copy_.default:
        return len(here) == 1 and args[1].dim() > 0 and not (len(args) > 2 and args[2])
    if func in (aten.index.Tensor, aten.index_put_.default):
        return bool(here) and any(i is not None and i.dtype == torch.bool for i in args[1])
    return bool(here) and func in _WAITING and kwargs.get("output_size") is None


def _inside(value: Any) -> Any:
    return value.inner if isinstance(value, OnGPU) else value


def _outside(value: Any) -> Any:
    return OnGPU(value) if type(value) is Tensor else value


def _empty(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return OnGPU(torch.empty_strided(size, stride, dtype=dtype))


def _copy(source: Tensor, target: OnGPU, blocking: bool = False) -> Tensor:
    target.inner.copy_(_inside(source))
    return target


_kernels = torch.library.Library("aten", "IMPL")  # below the dispatcher, for `x[:, [0, 2]]`
_kernels.impl("empty_strided", _empty, "PrivateUse1")
_kernels.impl("_copy_from", _copy, "PrivateUse1")


def _via_cpu(make: Any) -> Any:
    """`torch.tensor` makes its result below the dispatcher, where nothing can be pretended."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        result: Tensor = make(*args, **kwargs)
        return result if device is None else result.to(device)

    return made


def _new_tensor(self: Tensor, data: Any, device: Any = None, dtype: Any = None) -> Tensor:
    return torch.tensor(data, dtype=dtype or self.dtype).to(device or self.device)


@contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """Within, `Engine` finds the device, and mixing it with the CPU is an error."""
    from potstill.core import Engine  # after the change above

    start = Engine.__init__

    def init(self: Any, device: str = "auto", *args: Any, **kwargs: Any) -> None:
        self.pretends = device != "cpu"
        start(self, "cpu", *args, **kwargs)

    def device(self: Any) -> torch.device:
        return GPU if self.pretends else torch.device("cpu")

    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    with ExitStack() as stack:
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, before)
        for where, name, value in [
            (Engine, "__init__", init),
            (Engine, "device", property(device)),
            (torch, "tensor", _via_cpu(torch.tensor)),
            (torch, "as_tensor", _via_cpu(torch.as_tensor)),
            (Tensor, "new_tensor", _new_tensor),
        ]:
            stack.enter_context(mock.patch.object(where, name, value))
        stack.enter_context(_Mode())
        yield GPU
