"""Pickles of arrays by strangers: looked through before numpy, which trusts them, opens them."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from potstill.core import DataError, reading

__all__ = ["check_pickle"]


def check_pickle(path: Path) -> None:
    """Refuse a pickle that names anything but arrays, or in which these are not what they say.

    A state that does not fit its array or number kind ends numpy without an error.

    Raises:
        DataError: Says what is wrong.
    """
    content = path.read_bytes()
    with reading(path, "a pickle of arrays"):
        for operation, argument, _ in pickletools.genops(content):
            strange = operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")
            if strange or (operation.name == "GLOBAL" and argument not in _STAND_INS):
                named = argument or operation.name
                raise DataError(f"{path} must hold nothing but arrays, got {named!r}")
        _Reader(io.BytesIO(content), encoding="latin1").load()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pickle.loads(content, encoding="latin1")
        if sp.issparse(found):
            found.check_format(full_check=True)


class _Kind:
    """A kind of number; its state must be the one that numpy itself writes."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"arrays must hold numbers, got {name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state != self.dtype.newbyteorder(state[1]).__reduce__()[2]:
            raise ValueError(f"{self.dtype} has another state than numpy writes: {state}")


class _Array:
    """An array; it must be as large as its numbers."""

    def __init__(self, *arguments: Any) -> None:
        if arguments:
            raise ValueError("arrays must be restored, got one that is made anew")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, _, numbers = state
        size = math.prod(length if length >= 0 else math.nan for length in shape)
        if len(numbers) != size * kind.dtype.itemsize:
            raise ValueError(f"an array must be {shape}, got {len(numbers)} bytes")


class _Matrix:
    """A sparse matrix: a state of arrays and numbers."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not all(isinstance(state[name], _Array) for name in ("data", "indices", "indptr")):
            raise ValueError("a matrix must have three arrays")


def _restored(kind: type, shape: tuple[int], _: Any) -> _Array:
    if (kind, shape) != (_Array, (0,)):
        raise ValueError(f"arrays must be restored from none, got {kind} {shape}")
    return _Array()


_STAND_INS = {
    "__builtin__ list": list,
    "collections defaultdict": defaultdict,
    "numpy ndarray": _Array,
    "numpy dtype": _Kind,
    "numpy.core.multiarray _reconstruct": _restored,
    "scipy.sparse.csr csr_matrix": _Matrix,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _STAND_INS[f"{module} {name}"]
