"""The registry: which implementations of a function exist, which can run here, which one runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Generic, TypeVar

import torch

from potstill.core.errors import BackendError, ConfigError, nearest

__all__ = ["Backend", "Backends"]

F = TypeVar("F")


@dataclass(frozen=True)
class Backend(Generic[F]):
    """One implementation of a function.

    Args:
        name: Name that users write. ``torch`` is the reference, ``native`` is C++.
        about: One line for people.
        run: The implementation; heavy packages are imported when it is called.
        devices: Types of the devices that it runs on; any when empty.
        packages: Packages that it imports.
        install: Command or advice that makes them available, or a function that makes it for this
            machine; ``pip install`` of each by default.
        check: Function that raises `BackendError` where something else is missing.
        lacks: Missing abilities, in words that callers of `Backends.resolve` need.
    """

    name: str
    about: str
    run: F
    devices: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    install: str | Callable[[], str] = ""
    check: Callable[[], object] | None = None
    lacks: tuple[str, ...] = ()

    @cached_property
    def missing(self) -> str:
        """Why it cannot run here, with what to install; empty where it can."""
        if self.devices == ("cuda",) and not torch.cuda.is_available():
            return "torch finds no CUDA device"  # said first: some packages break without one
        for package in self.packages:
            try:
                import_module(package)
            except Exception as error:  # any: tinycudann raises NameError without its extension
                advice = self.install() if callable(self.install) else self.install
                advice = advice or f"pip install {package}"
                return f"{package} cannot be imported ({error}); {advice}"
        try:
            if self.check is not None:
                self.check()
        except BackendError as error:
            return str(error)
        return ""


class Backends(dict[str, Backend[F]]):
    """The implementations of one function, by name, the preferred one first.

    Args:
        function: Name of the function, for messages and tables.
        backends: Backends; the last one is the reference, which runs everywhere.

    Example:
        >>> product = Backends(
        ...     "product",
        ...     Backend("triton", "one kernel", lambda x: x @ x, ("cuda",), ("triton",)),
        ...     Backend("torch", "the reference", torch.linalg.matrix_power),
        ... )
        >>> product.resolve("auto", "cpu").name
        'torch'
        >>> product["torch"].missing
        ''
    """

    def __init__(self, function: str, *backends: Backend[F]) -> None:
        self.function = function
        super().__init__({backend.name: backend for backend in backends})

    def __missing__(self, name: str) -> Backend[F]:
        raise ConfigError(
            f"{self.function}: backend must be a known one, got {name!r}; "
            f"{nearest(name, ('auto', *self))}"
        )

    def resolve(
        self,
        name: str = "auto",
        device: torch.device | str | None = None,
        needs: Collection[str] = (),
    ) -> Backend[F]:
        """The backend that ``name`` means here.

        Args:
            name: Name of a backend, which is taken or refused and never replaced; or ``"auto"``,
                the first one that can run; a warning says why one that needs no package cannot.
            device: Device of the tensors; not looked at when None.
            needs: Abilities that this call needs and some backends lack.

        Raises:
            ConfigError: An unknown name.
            BackendError: It cannot run here, or not on that device, or lacks what is needed.
        """
        kind = None if device is None else torch.device(device).type
        able = [b for b in self.values() if _runs_on(b, kind) and not _lacking(b, needs)]
        if name == "auto":
            chosen = next(b for b in able if not b.missing)
            for b in able[: able.index(chosen)] if kind else ():
                if b.check and not b.packages:  # nothing has to be installed, so it is expected
                    warnings.warn(
                        f"{self.function}: backend {chosen.name!r} runs instead of {b.name!r}: "
                        f"{b.missing}",
                        stacklevel=2,
                    )
            return chosen
        backend = self[name]
        reason = backend.missing
        if not reason and not _runs_on(backend, kind):
            reason = f"it runs on {' and '.join(backend.devices)}, got tensors on {kind}"
        if not reason and (lacking := _lacking(backend, needs)):
            reason = f"it does not do {' and '.join(lacking)}"
        if reason:
            other = next(b for b in able if not b.missing)
            raise BackendError(
                f"{self.function}: backend {name!r} cannot run here: {reason}; or use backend "
                f"{other.name!r}"
            )
        return backend

    def rows(self) -> list[dict[str, str]]:
        """One row a backend: its name, device, function, whether it can run here, and why not."""
        return [
            {
                "backend": backend.name,
                "device": ", ".join(backend.devices) or "any",
                "does": self.function,
                "available": "no" if backend.missing else "yes",
                "about": backend.missing or backend.about,
            }
            for backend in self.values()
        ]


def _runs_on(backend: Backend[F], kind: str | None) -> bool:
    return kind is None or not backend.devices or kind in backend.devices


def _lacking(backend: Backend[F], needs: Collection[str]) -> list[str]:
    return [need for need in needs if need in backend.lacks]
