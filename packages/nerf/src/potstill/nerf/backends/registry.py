"""Which backends there are, which can run here, and which one runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from potstill.core import BackendError, ConfigError, nearest

__all__ = ["BACKENDS", "Backend", "backend_rows", "resolve"]


@dataclass(frozen=True)
class Backend:
    """A backend: the module that implements it, and what is known without importing that.

    A module has ``missing() -> str`` (why it cannot run here and what to do; empty when it can)
    and some of ``encode(x, table, levels)``, ``march(...)`` and ``weights(...)``, with the meaning
    of those in ``potstill.nerf.backends.reference``.

    Args:
        name: Its name.
        module: Module in this package.
        device: Where it runs: "cpu", "cuda" or "any".
        about: One line for people.
        provides: The functions that it has.
    """

    name: str
    module: str
    device: str
    about: str
    provides: tuple[str, ...] = ("encode",)

    def missing(self) -> str:
        """Why it cannot run here, and what to do; empty when it can."""
        return _missing(self.module)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self.provides:
            raise AttributeError(name)
        function: Callable[..., Any] = getattr(_load(self.module), name)
        return function


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "torch",
            "reference",
            "any",
            "plain torch, the reference; deterministic on a CPU",
            ("encode", "march"),
        ),
        Backend(
            "cpu",
            "native",
            "cpu",
            "C++ built on first use; float32, deterministic",
            ("encode", "march"),
        ),
        Backend("triton", "tritongrid", "cuda", "Triton kernels; float32, atomic adds"),
        Backend("tcnn", "tcnn", "cuda", "tiny-cuda-nn's Encoding; float32 output, atomic adds"),
        Backend(
            "nerfacc", "nerfaccgrid", "cuda", "nerfacc's marching and packed scans", ("march",)
        ),
    )
}
_PREFERRED = {
    ("encode", "cpu"): ("cpu", "torch"),
    ("encode", "cuda"): ("triton", "tcnn", "torch"),
    ("march", "cpu"): ("cpu", "torch"),
    ("march", "cuda"): ("nerfacc", "torch"),
}


def resolve(name: str = "auto", device: str | None = None, function: str = "encode") -> Backend:
    """The backend to use for ``function``.

    Args:
        name: A backend, which is taken or refused and never replaced; or "auto".
        device: Type of the device of the tensors.
        function: "encode" or "march".

    Raises:
        ConfigError: An unknown name, or a backend without that function.
        BackendError: It cannot run here, or not on that device.

    Example:
        >>> resolve("torch").name
        'torch'
    """
    if name == "auto":
        for candidate in _PREFERRED.get((function, device or "cpu"), ("torch",)):
            if not BACKENDS[candidate].missing():
                return BACKENDS[candidate]
        return BACKENDS["torch"]
    if name not in BACKENDS:
        raise ConfigError(
            f"resolve: unknown backend {name!r}; {nearest(name, [*BACKENDS, 'auto'])}"
        )
    backend = BACKENDS[name]
    if function not in backend.provides:
        able = [b.name for b in BACKENDS.values() if function in b.provides]
        raise ConfigError(
            f"resolve: backend {name!r} does not {function}; these do: {', '.join(able)}"
        )
    if reason := backend.missing():
        raise BackendError(f"resolve: backend {name!r} cannot run here: {reason}")
    if device is not None and backend.device not in ("any", device):
        raise BackendError(
            f"resolve: backend {name!r} runs on {backend.device}, got tensors on {device}; move "
            "the field, or choose backend='auto'"
        )
    return backend


def backend_rows() -> list[dict[str, str]]:
    """One row a backend, for ``potstill nerf backends``."""
    return [
        {
            "backend": backend.name,
            "device": backend.device,
            "available": "no" if (reason := backend.missing()) else "yes",
            "does": ", ".join(backend.provides),
            "about": reason or backend.about,
        }
        for backend in BACKENDS.values()
    ]


def _load(module: str) -> Any:
    return importlib.import_module(f"potstill.nerf.backends.{module}")


@cache
def _missing(module: str) -> str:
    return str(_load(module).missing())
