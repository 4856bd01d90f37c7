"""Taps: read the input and output of named modules during a forward pass, or replace the output."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from potstill.core.errors import TapError, nearest
from potstill.core.vocabulary.teacher import Frozen

__all__ = ["Reading", "Readings", "inject", "tap"]

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Reading(NamedTuple):
    """What passed through a tapped module: its first positional input, and its output."""

    input: Any
    output: Any


class Readings(Mapping[str, Reading]):
    """The readings of one ``tap``, by module path."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._values: dict[str, Reading] = {}
        self._without_gradient: set[str] = set()

    def __getitem__(self, name: str) -> Reading:
        if name not in self._names:
            raise TapError(f"tap: {name!r} is not tapped; {nearest(name, self._names)}")
        if name not in self._values:
            raise TapError(
                f"tap: the forward never reached {name!r}; was the model run inside the `with`, "
                "does it use that module, and was it compiled as a whole (compile the blocks "
                "with `block.compile()` instead)?"
            )
        found = self._values[name]
        if name in self._without_gradient and not _requires_grad(found.output):
            warnings.warn(
                f"tap: {name!r} ran without gradient inside a forward that records one, as under "
                "reentrant checkpointing: a loss on this reading trains nothing below it; "
                "checkpoint with use_reentrant=False, or tap the checkpointed module itself",
                stacklevel=2,
            )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Stop(BaseException):
    """Ends a forward at its last tap; not an `Exception`, so that no model catches it."""


@contextmanager
def tap(model: nn.Module, *names: str, stop: bool = False) -> Iterator[Readings]:
    """Read what passes through the modules called ``names`` while ``model`` runs.

    A module that runs several times gives its last reading. Works under DDP, FSDP and
    ``block.compile()``; wrapper prefixes (``module.``, ``_orig_mod.``) need not be given. All
    hooks are gone when the block is left, also by an exception. Reading a trainable module that
    ran without gradient inside a forward with gradient (reentrant checkpointing) warns.

    Args:
        model: Any module.
        *names: Paths as in ``model.named_modules()``.
        stop: End the forward as soon as every tapped module has run. The call of ``model`` then
            returns None, and nothing behind the last tap is computed.

    Raises:
        TapError: At entry for a path that does not exist; on reading for a module that the
            forward never reached.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with tap(net, "0", stop=True) as readings:
        ...     net(torch.zeros(4, 2))
        >>> readings["0"].output.shape
        torch.Size([4, 3])
    """
    if not names:
        raise TapError("tap: name at least one module, got none")
    model = model.model if isinstance(model, Frozen) else model
    modules = {_strip(path): module for path, module in model.named_modules(remove_duplicate=False)}
    targets = {}
    for name in names:
        if _strip(name) not in modules:
            raise TapError(
                f"tap: {type(model).__name__} has no module {name!r}; {nearest(name, modules)}"
            )
        targets[name] = modules[_strip(name)]

    readings = Readings(names)
    handles = []
    forward = model.forward
    own_forward = model.__dict__.get("forward")  # accelerate sets one on the instance

    recording = False

    def begin(*_: Any) -> None:
        nonlocal recording
        recording = torch.is_grad_enabled()

    def read(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        first = args[0] if args else next(iter(kwargs.values()), None)
        readings._values[name] = Reading(first, output)
        if recording and not torch.is_grad_enabled() and _trains(targets[name]):
            readings._without_gradient.add(name)
        else:
            readings._without_gradient.discard(name)
        if stop and len(readings._values) == len(names):
            raise _Stop

    def stopping_forward(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except _Stop:
            return None

    try:
        handles.append(model.register_forward_pre_hook(begin))
        for name, module in targets.items():
            handles.append(
                module.register_forward_hook(
                    lambda m, args, kwargs, output, name=name: read(name, args, kwargs, output),
                    with_kwargs=True,
                )
            )
        if stop:
            model.__dict__["forward"] = stopping_forward
        yield readings
    finally:
        for handle in handles:
            handle.remove()
        if stop:
            del model.__dict__["forward"]
            if own_forward is not None:
                model.__dict__["forward"] = own_forward


@contextmanager
def inject(model: nn.Module, name: str, value: Tensor) -> Iterator[None]:
    """Let a model continue from a given state: a named module's output is replaced by ``value``.

    Gradient reaches the value, not the module before it. A teacher in a distiller is called as
    ``teacher.model(x)`` here, since `Frozen` records no gradient. All hooks are gone when the block
    is left, also by an exception.

    Args:
        model: Any module.
        name: Path as in ``model.named_modules()``.
        value: State, shaped like the module's output.

    Raises:
        TapError: No such path; an output that is no tensor of that shape; or a forward that never
            reached the module, for instance because the model was compiled as a whole.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with inject(net, "1", torch.zeros(4, 3)):
        ...     y = net(torch.randn(4, 2))
        >>> torch.equal(y, net[2].bias.expand(4, 1))
        True
    """
    model = model.model if isinstance(model, Frozen) else model
    modules = {_strip(path): module for path, module in model.named_modules(remove_duplicate=False)}
    if _strip(name) not in modules:
        raise TapError(
            f"inject: {type(model).__name__} has no module {name!r}; {nearest(name, modules)}"
        )
    fired = False

    def replace(module: nn.Module, args: Any, output: Any) -> Tensor:
        nonlocal fired
        fired = True
        if not isinstance(output, Tensor) or output.shape != value.shape:
            got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise TapError(
                f"inject: value must be {got} like the output of {name!r}, got {list(value.shape)}"
            )
        return value

    handle = modules[_strip(name)].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
    if not fired:
        raise TapError(
            f"inject: the forward never reached {name!r}, so nothing was replaced; was the model "
            "run inside the `with`, and was it compiled as a whole (compile the blocks with "
            "`block.compile()` instead)?"
        )


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _requires_grad(output: Any) -> bool:
    return any(leaf.requires_grad for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _strip(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)
