"""Exceptions of potstill: one root, and each class also is the built-in that it refines.

    PotstillError
    ├── ShapeError (ValueError)         tensors that do not fit together
    ├── ConfigError (ValueError)        an option, a file of options, or a combination of them
    ├── ObjectiveError (ValueError)     terms that are unknown, missing or not scalar
    ├── TapError (LookupError)          a module path that is misspelt or was not reached
    ├── NonFiniteError (ArithmeticError) a loss that is NaN or infinite
    ├── CheckpointError (RuntimeError)  a checkpoint that is damaged or belongs to another run
    ├── DataError (OSError)             data that is missing, incomplete or not what was expected
    ├── BackendError (RuntimeError)     a backend that cannot run on this machine
    └── Interrupted (RuntimeError)      a run that stopped on a signal, after writing a checkpoint

Messages read ``"<callable>: <argument> must be <requirement>, got <value>; <what to do>"``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Interrupted",
    "NonFiniteError",
    "ObjectiveError",
    "PotstillError",
    "ShapeError",
    "TapError",
    "nearest",
    "reading",
]


class PotstillError(Exception):
    """Root of all errors that potstill raises on purpose."""


class ShapeError(PotstillError, ValueError):
    """Tensors whose shapes or dtypes do not fit together."""


class ConfigError(PotstillError, ValueError):
    """An option that is unknown, out of range, or contradicts another one."""


class ObjectiveError(PotstillError, ValueError):
    """Terms of an objective that are unknown, missing or not scalar."""


class TapError(PotstillError, LookupError):
    """A module path that does not exist, or a module that the forward never reached."""


class NonFiniteError(PotstillError, ArithmeticError):
    """A loss that is NaN or infinite."""


class CheckpointError(PotstillError, RuntimeError):
    """A checkpoint that is damaged, or that belongs to another run."""


class DataError(PotstillError, OSError):
    """Data that is missing, incomplete, or not what its hash says."""


class BackendError(PotstillError, RuntimeError):
    """A backend that cannot run on this machine; the message says what to install."""


class Interrupted(PotstillError, RuntimeError):
    """A run that was stopped by a signal and has written a checkpoint.

    Attributes:
        exit_code: Exit code of the process, 128 + the signal's number.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which of ``known`` was probably meant: the tail of an error message.

    Example:
        >>> nearest("feture", ["feature", "pixel"])
        "did you mean 'feature'?"
        >>> nearest("x", ["feature", "pixel"])
        'known: feature, pixel'
    """
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known) or 'none'}"


@contextmanager
def reading(
    path: str | os.PathLike[str], requirement: str, error: type[PotstillError] = DataError
) -> Iterator[None]:
    """Turn whatever a damaged file does to its reader into one of our errors that names the file.

    Only the reading belongs into the block. Errors of ours pass; they get the name where they lack
    it.

    Args:
        path: The file, or the folder of several.
        requirement: Requirement, e.g. "a whole cache".
        error: Class of the error.

    Raises:
        DataError: Or ``error``: anything went wrong in the block, short of being interrupted.

    Example:
        >>> with reading("a.json", "JSON"):
        ...     {}["frames"]
        Traceback (most recent call last):
        ...
        potstill.core.errors.DataError: a.json must be JSON, got KeyError: 'frames'; is it whole?
    """
    try:
        yield
    except PotstillError as known:
        if os.path.basename(path) in str(known) or isinstance(known, Interrupted):
            raise
        raise type(known)(f"{os.fspath(path)}: {known}") from known
    except Exception as found:  # whatever a parser raises: that is what this is for
        said = " ".join(f"{type(found).__name__}: {found}".split())[:300]
        raise error(f"{os.fspath(path)} must be {requirement}, got {said}; is it whole?") from found
