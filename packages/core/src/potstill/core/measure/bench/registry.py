"""What a benchmark declares: its pair or figures, its targets, and what it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from potstill.core.errors import ConfigError
from potstill.core.store.data import root

__all__ = [
    "Benchmark",
    "Figure",
    "Pair",
    "Skip",
    "Target",
    "at_least",
    "at_most",
    "benchmark",
    "close",
    "registered",
]


class Skip(Exception):
    """Raised by a benchmark that cannot run here; the text says what is missing."""


@dataclass(frozen=True)
class Target:
    """What a figure must reach, and where that was promised.

    Attributes:
        direction: ">=" or "<=".
        value: The bound, in the unit of the figure.
        source: The clause it comes from, e.g. "issue 2: Cora".
    """

    direction: Literal[">=", "<="]
    value: float
    source: str

    def met(self, value: float) -> bool:
        """Whether ``value`` reaches the target; NaN never does."""
        return value >= self.value if self.direction == ">=" else value <= self.value

    def __str__(self) -> str:
        """Direction and bound."""
        return f"{self.direction} {self.value:g}"


def at_least(value: float, source: str) -> Target:
    """A figure that must not be smaller."""
    return Target(">=", value, source)


def at_most(value: float, source: str) -> Target:
    """A figure that must not be larger."""
    return Target("<=", value, source)


def close(
    rtol: float = 1e-5, atol: float = 1e-6, *, check_dtype: bool = True
) -> Callable[[Any, Any], None]:
    """A check that both outputs (tensors, numbers, nests of them) agree within tolerance."""

    def check(ours: Any, baseline: Any) -> None:
        import torch

        torch.testing.assert_close(ours, baseline, rtol=rtol, atol=atol, check_dtype=check_dtype)

    return check


@dataclass(frozen=True)
class Figure:
    """A figure that is not a race: accuracy, decibels, MiB.

    Attributes:
        value: A number, or one number for each seed.
        unit: For the table.
        timed: A time or a rate on the wall clock, which a busy machine spoils.
    """

    value: float | Sequence[float]
    unit: str = ""
    timed: bool = False


@dataclass(frozen=True)
class Pair:
    """Two implementations of the same work.

    Attributes:
        ours: Function claimed to be better; takes nothing, returns what ``check`` compares.
        baseline: Function to compare with: another library, or the obvious program.
        check: ``check(output of ours, output of baseline)`` raises AssertionError when they differ.
        work: Items in one call, for the figure "rate".
        unit: Unit of that rate, e.g. "edges/s".
        bytes: Least bytes that must move in one call, for the figure "floor".
        flops: Least floating-point operations of one call (2 per multiply-add), for "floor".
        figures: More figures of the same benchmark, e.g. extra memory.
    """

    ours: Callable[[], Any]
    baseline: Callable[[], Any]
    check: Callable[[Any, Any], None] = field(default_factory=close)
    work: float = 0.0
    unit: str = "calls/s"
    bytes: float = 0.0
    flops: float = 0.0
    figures: Mapping[str, Figure] = field(default_factory=dict)


Measurement = Pair | Mapping[str, Figure]
Function = TypeVar("Function", bound=Callable[..., Measurement])


@dataclass(frozen=True)
class Benchmark:
    """A registered benchmark; see :func:`benchmark` for the fields."""

    domain: str
    name: str
    function: Callable[..., Measurement]
    targets: Mapping[str, Target]
    budget: float
    data: tuple[str, ...]
    device: str
    threads: int | None
    clock: Literal["wall", "cpu"]
    seed: int

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def asks_for(self, parameter: str) -> bool:
        """Whether the function has a parameter of that name, "quick" or "official"."""
        return parameter in inspect.signature(self.function).parameters

    def missing(self, official: Path | None = None) -> str:
        """Why data, device or the authors' code is absent; empty when all of it is there."""
        if self.asks_for("official") and official is None:
            return "needs a checkout of the authors' code: --official PATH"
        if self.device != "cpu":
            import torch

            if not torch.cuda.is_available():
                return f"no CUDA device is available here, and it needs {self.device}"
        gone = [path for path in self.data if not (root() / path).exists()]
        if not gone:
            return ""
        wanted = ", ".join(path or "the data root" for path in gone)
        return f"{wanted} is not below {root()} (set POTSTILL_DATA)"

    def measure(self, quick: bool, official: Path | None = None) -> Measurement:
        """Call the function with what it asks for: ``quick``, ``official``, both or neither."""
        known = {"quick": quick, "official": official}
        return self.function(**{name: known[name] for name in known if self.asks_for(name)})


_REGISTRY: dict[tuple[str, str], Benchmark] = {}


def benchmark(
    *,
    domain: str = "",
    name: str = "",
    targets: Target | Mapping[str, Target] | None = None,
    budget: float = 60.0,
    data: bool | str | Sequence[str] = False,
    device: str = "cpu",
    threads: int | None = None,
    clock: Literal["wall", "cpu"] = "wall",
    seed: int = 0,
) -> Callable[[Function], Function]:
    """Register a function that returns a :class:`Pair` or ``{name: Figure}``.

    Args:
        domain: Its domain; by default the folder of its file.
        name: Its name; by default the function's, with hyphens.
        targets: Targets by the name of the figure; a single one is for "ratio".
        budget: Seconds it may take; a pair then stops early.
        data: True when the data root is needed, or paths below it; skipped where absent.
        device: Device of the computation; skipped where that is a CUDA device and there is none.
        threads: Torch threads while it runs; as they are when None.
        clock: "cpu" times a single-threaded pair by CPU time, which a busy machine disturbs less.
        seed: Seeds torch, numpy and python before the function runs, and the order of blocks.

    Raises:
        ConfigError: The name is taken, or ``clock="cpu"`` without ``threads=1``.
    """
    if clock == "cpu" and threads != 1:
        raise ConfigError(
            f"benchmark: threads must be 1 with clock='cpu', got {threads}; CPU time "
            "adds threads up"
        )
    if isinstance(targets, Target):
        targets = {"ratio": targets}
    if isinstance(data, bool):
        data = ("",) if data else ()
    paths = (data,) if isinstance(data, str) else tuple(data)

    def register(function: Function) -> Function:
        folder = function.__module__.split(".")[-2:-1]
        entry = Benchmark(
            domain or "".join(folder),
            name or function.__name__.replace("_", "-"),
            function,
            dict(targets or {}),
            budget,
            paths,
            device,
            threads,
            clock,
            seed,
        )
        known = _REGISTRY.setdefault((entry.domain, entry.name), entry)
        if known is not entry and known.function.__module__ != function.__module__:
            raise ConfigError(
                f"benchmark: name must be new in {entry.domain!r}, got {entry.name!r}, which "
                f"{known.function.__module__} has; choose another"
            )
        return function

    return register


def registered(domain: str | None = None) -> list[Benchmark]:
    """All benchmarks, or those of a domain, in the order of their registration."""
    return [entry for entry in _REGISTRY.values() if domain in (None, entry.domain)]
