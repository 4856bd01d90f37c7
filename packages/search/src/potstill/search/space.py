"""Spaces of students: a builder, and the values that its arguments may have."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.core import BackendError, ConfigError, fingerprint, generator, nearest, seed_all
from potstill.core.command import read

__all__ = ["Space", "builders", "label"]

Choice = dict[str, Any]
_GROUP = "potstill.builders"


@dataclass(frozen=True)
class Space:
    """Candidates for a student: every combination of the values of some arguments.

    Args:
        build: Called as ``build(**fixed, **choice)``; gives the student with fresh weights.
        choices: Values by argument.
        fixed: Arguments that all candidates share.
        valid: ``valid(**choice)``: whether a combination belongs to the space.
        name: Name of the builder, for reports and for the signature of a run.

    Raises:
        ConfigError: No choice, an argument without values, with one value twice, or also among
            ``fixed``; or a single candidate.

    Example:
        >>> space = Space(nn.Linear, {"in_features": (4, 8), "out_features": (2, 3)})
        >>> len(space), next(iter(space))
        (4, {'in_features': 4, 'out_features': 2})
        >>> space.make({"in_features": 4, "out_features": 3})
        Linear(in_features=4, out_features=3, bias=True)
    """

    build: Callable[..., nn.Module]
    choices: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    valid: Callable[..., bool] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for name, values in self.choices.items():
            keys = [json.dumps(value, default=str) for value in values]
            if isinstance(values, str) or not keys:
                raise ConfigError(f"Space: {name} must be a list of values, got {values!r}")
            if len(set(keys)) < len(keys):
                raise ConfigError(f"Space: {name} must have different values, got {list(values)}")
            if name in self.fixed:
                raise ConfigError(f"Space: {name} must be fixed or a choice, got both")
        if self.size < 2:
            raise ConfigError(
                f"Space: choices must leave at least 2 candidates, got {self.size} of "
                f"{dict(self.choices)}"
            )

    @classmethod
    def load(cls, path: str | Path) -> Space:
        """A space from a file: ``builder``, and tables ``choices`` and ``fixed``.

        Nothing in the file is executed: the builder is the name of one that an installed package
        offers (see `builders`).

        Raises:
            ConfigError: A file that says something else, or an unknown builder.
            BackendError: A builder that cannot be loaded.
        """
        values = read(path)
        for name in values:
            if name not in ("builder", "choices", "fixed"):
                raise ConfigError(
                    f"Space: {path} must have builder, choices and fixed, got {name!r}; "
                    f"{nearest(name, ('builder', 'choices', 'fixed'))}"
                )
        for name in ("choices", "fixed"):
            if not isinstance(values.get(name, {}), dict):
                raise ConfigError(f"Space: {name} in {path} must be a table, got {values[name]!r}")
        for name, found in values.get("choices", {}).items():
            if not isinstance(found, list):
                raise ConfigError(f"Space: {name} in {path} must be a list, got {found!r}")
        known, wanted = builders(), values.get("builder", "")
        if wanted not in known:
            raise ConfigError(
                f"Space: builder in {path} must be one of {', '.join(sorted(known))}, got "
                f"{wanted!r}; {nearest(str(wanted), known)}"
            )
        try:
            build = known[wanted].load()
        except Exception as error:
            raise BackendError(
                f"Space: the builder {wanted!r} in {path} could not be loaded from "
                f"{known[wanted].value} ({type(error).__name__}: {error}); install what it needs"
            ) from error
        return cls(build, values.get("choices", {}), values.get("fixed", {}), name=wanted)

    @property
    def size(self) -> int:
        """Combinations, those that ``valid`` refuses included."""
        return math.prod(len(values) for values in self.choices.values())

    def __len__(self) -> int:
        """Combinations, those that ``valid`` refuses included."""
        return self.size

    def __iter__(self) -> Iterator[Choice]:
        """All candidates, the last argument changing first."""
        for values in product(*self.choices.values()):
            choice = dict(zip(self.choices, values, strict=True))
            if self.valid is None or self.valid(**choice):
                yield choice

    def sample(self, count: int, seed: int = 0) -> list[Choice]:
        """Different candidates at random, or all where there are no more; in the space's order."""
        if count >= self.size:
            return list(self)
        stream, found = generator("sample", seed), {}
        for _ in range(20 * count):
            ranks = [int(torch.randint(len(v), (), generator=stream)) for v in self.lists]
            choice = {k: v[i] for (k, v), i in zip(self.choices.items(), ranks, strict=True)}
            if self.valid is None or self.valid(**choice):
                found[tuple(ranks)] = choice
            if len(found) == count:
                break
        return [found[ranks] for ranks in sorted(found)]

    @property
    def lists(self) -> list[Sequence[Any]]:
        """Values of each argument."""
        return list(self.choices.values())

    def make(self, choice: Mapping[str, Any], seed: int = 0) -> nn.Module:
        """The student of a choice, with fresh weights of a seed."""
        seed_all("student", seed)
        return self.build(**self.fixed, **choice)

    def having(self, **fixed: Any) -> Space:
        """The space with more arguments that all candidates share."""
        return replace(self, fixed={**self.fixed, **fixed})

    def fingerprint(self) -> str:
        """Digest of builder, choices and fixed arguments."""
        build = self.name or f"{self.build.__module__}.{getattr(self.build, '__qualname__', '')}"
        return fingerprint(build, dict(self.choices), dict(self.fixed), len(list(self))
                           if self.valid else "")  # fmt: skip


def builders() -> dict[str, Any]:
    """Entry points of builders by name: those of this package, and of the installed domains.

    A package offers one in its group ``potstill.builders``: a function or class that gives a model.

    Example:
        >>> {"resnet", "timm"} <= set(builders())
        True
    """
    return {point.name: point for point in entry_points(group=_GROUP)}


def label(choice: Mapping[str, Any]) -> str:
    """A choice as a word: its name in tables, and its key in the files of a run.

    Example:
        >>> label({"depth": 2, "width": (8, 16)})
        'depth=2 width=8,16'
    """

    def word(value: Any) -> str:
        return ",".join(map(word, value)) if isinstance(value, list | tuple) else str(value)

    return " ".join(f"{name}={word(value)}" for name, value in choice.items())
