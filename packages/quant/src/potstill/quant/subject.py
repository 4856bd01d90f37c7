"""What a domain gives: a student with its data, its distiller and its score."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.core import ConfigError, Distiller, nearest

__all__ = ["Subject", "judge", "load_subject"]


@dataclass(frozen=True)
class Subject:
    """A trained student, and what is needed to lower, train and judge it.

    Any domain makes one of its own parts; this package knows none of them.

    Attributes:
        student: Trained student in full precision.
        inputs: Real inputs for calibration: tensors, tuples of arguments, or mappings.
        score: Quality of a student, larger is better.
        distiller: Distiller of the domain around a student, with its teacher or without;
            called as ``distiller(student, taught)``.
        batches: What `potstill.core.fit` takes.
        keep: Bits of modules that differ, by path.
        lr: Learning rate where none is asked for.
        unit: Unit of the score.
    """

    student: nn.Module
    inputs: Sequence[Any]
    score: Callable[[nn.Module], float]
    distiller: Callable[[nn.Module, bool], Distiller]
    batches: Any
    keep: Mapping[str, int] = field(default_factory=dict)
    lr: float = 1e-3
    unit: str = ""


def judge(subject: Subject, student: nn.Module) -> float:
    """Score of a student, without gradients."""
    with torch.no_grad():
        return float(subject.score(student))


def load_subject(name: str, data: Path | None = None) -> Subject:
    """Call the function that makes a subject. Whoever names it lets its code run.

    Args:
        name: ``package.module:function``, or ``file.py:function``.
        data: Handed to the function, where it is given.

    Raises:
        ConfigError: There is no such module or function, or it gives something else.

    Example:
        >>> load_subject("potstill.quant:gratings").unit
        '%'
    """
    where, _, attribute = name.rpartition(":")
    if not where:
        raise ConfigError(
            f"load_subject: name must be package.module:function or file.py:function, got {name!r}"
        )
    module = _module(where)
    make = getattr(module, attribute, None)
    if not callable(make):
        known = [each for each in dir(module) if not each.startswith("_")]
        raise ConfigError(f"load_subject: {where} has no {attribute}; {nearest(attribute, known)}")
    found = make() if data is None else make(data)
    if not isinstance(found, Subject):
        raise ConfigError(f"load_subject: {name} must give a Subject, got {type(found).__name__}")
    return found


def _module(where: str) -> Any:
    path = Path(where)
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(f"load_subject: no such file: {where}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # where its classes say they come from
        spec.loader.exec_module(module)
        return module
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as missing:
        if not where.startswith(missing.name or "\0"):
            raise
        raise ConfigError(f"load_subject: no module {where!r}: {missing}") from missing
