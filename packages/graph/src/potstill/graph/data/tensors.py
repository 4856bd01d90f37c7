"""Tensors that are made once: sparse rows, and a memo of what was derived from inputs."""

from __future__ import annotations

import warnings
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from potstill.core import DataError, ShapeError

__all__ = [
    "MOST",
    "Memo",
    "as_features",
    "check_csr",
    "compress",
    "csr",
    "density",
    "is_sparse",
    "read_npz",
    "rows",
    "transposed",
]

MOST = 2**33  # bytes that a compressed file may become
Made = TypeVar("Made")


class Memo:
    """Remembers what was made of tensors, for as long as they are the same objects, not written to.

    Criteria and layers stay pure functions of their arguments, and still compute what depends on
    the graph and the teacher only once. Nothing is kept alive: only weak references are held.

    Example:
        >>> memo, x = Memo(), torch.ones(3)
        >>> memo(torch.sum, x) is memo(torch.sum, x)
        True
        >>> _ = x.add_(1)
        >>> memo(torch.sum, x)
        tensor(6.)
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._made: Any = None

    def __call__(self, make: Callable[..., Made], *inputs: Any) -> Made:
        """``make(*inputs)``, from memory where the inputs are those of the last call."""
        if not self._knows(inputs):
            self._made = make(*inputs)
            self._key = tuple(_Mark(value) for value in inputs)
        made: Made = self._made
        return made

    def _knows(self, inputs: tuple[Any, ...]) -> bool:
        return len(inputs) == len(self._key) and all(
            mark.matches(value) for value, mark in zip(inputs, self._key, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_key": (), "_made": None}  # copies and pickles start empty


class _Mark:
    """Recognises an input; a tensor without keeping it alive."""

    def __init__(self, value: Any) -> None:
        self.version = _version(value) if isinstance(value, Tensor) else None
        self.reference = weakref.ref(value) if isinstance(value, Tensor) else lambda: value

    def matches(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return self.reference() is value and self.version == _version(value)
        return self.version is None and bool(self.reference() == value)


def _version(tensor: Tensor) -> int:
    # Sparse tensors count no versions, tensors of inference mode refuse to: nobody writes to those.
    if tensor.layout != torch.strided or tensor.is_inference():
        return 0
    if tensor.device.type == "cpu" and not tensor.untyped_storage().resizable():
        # Memory of numpy or of another process, which is written to without being counted.
        return zlib.crc32(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return tensor._version


def csr(pointers: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse CSR tensor [rows, columns], without torch's warning that these are in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            pointers, columns, values, size=shape, check_invariants=False
        )


def compress(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """CSR of coordinates; the order of equal rows is by column, duplicates stay."""
    order = torch.argsort(rows * shape[1] + columns, stable=True)
    counts = torch.bincount(rows, minlength=shape[0])
    pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return csr(pointers, columns[order], values[order], shape)


def check_csr(x: Tensor, name: str = "x") -> bool:
    """True where pointers and columns of a CSR matrix are in range: kernels read memory there.

    Raises:
        DataError: They are not.
    """
    pointers, columns, entries = x.crow_indices(), x.col_indices(), x.values().numel()
    steps = pointers.diff()
    fits = pointers.numel() == x.shape[0] + 1 and columns.numel() == entries
    fits = fits and int(pointers[0]) == 0 and int(pointers[-1]) == entries
    fits = fits and not bool((steps < 0).any())
    if entries and fits:
        low, high = (int(value) for value in columns.aminmax())
        fits = low >= 0 and high < x.shape[1]
    if not fits:
        raise DataError(
            f"{name}: a CSR matrix {list(x.shape)} must have rising row pointers and columns in "
            f"[0, {x.shape[1]}), got others; make it with torch.Tensor.to_sparse_csr() or scipy"
        )
    return True


def transposed(matrix: Tensor) -> Tensor:
    """The transpose of a CSR matrix, as CSR."""
    pointers, columns = matrix.crow_indices(), matrix.col_indices().long()
    rows = torch.repeat_interleave(
        torch.arange(matrix.shape[0], device=columns.device), pointers.diff()
    )
    return compress(columns, rows, matrix.values(), (matrix.shape[1], matrix.shape[0]))


def is_sparse(x: Tensor) -> bool:
    """Whether ``x`` is stored as compressed sparse rows."""
    return x.layout == torch.sparse_csr


def density(x: Tensor) -> float:
    """Share of entries that are not zero."""
    count = x.values().numel() if is_sparse(x) else int(torch.count_nonzero(x))
    return count / max(1, x.shape[0] * x.shape[1])


def as_features(x: Any, name: str = "x") -> Tensor:
    """Node features as a float32 tensor, dense or CSR, from what people have.

    Args:
        x: A tensor (dense, CSR or COO), a numpy array (memory-mapped too), or a scipy matrix.
        name: For messages.

    Returns:
        [N F] float32; CSR stays CSR.

    Raises:
        ShapeError: Not two-dimensional, or not numbers.
    """
    if sp.issparse(x):
        x = x.tocsr()
        return csr(
            torch.from_numpy(x.indptr).long(),
            torch.from_numpy(x.indices).long(),
            torch.from_numpy(x.data).float(),
            x.shape,
        )
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x))
    if not isinstance(x, Tensor) or x.ndim != 2:
        got = f"shape {list(x.shape)}" if hasattr(x, "shape") else type(x).__name__
        raise ShapeError(
            f"as_features: {name} must be a matrix [nodes, features], got {got}; a single node is "
            "x[None]"
        )
    if x.layout == torch.sparse_coo:
        x = x.coalesce()
        row, column = x.indices()
        x = compress(row, column, x.values(), (x.shape[0], x.shape[1]))
    if is_sparse(x):
        check_csr(x, name)
    return x if x.dtype == torch.float32 else x.float()


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a dense or CSR matrix, in the layout of ``x``.

    Example:
        >>> x = as_features(sp.eye(3).tocsr())
        >>> rows(x, torch.tensor([2, 0])).to_dense()
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    if not is_sparse(x):
        return x[index]
    start, length = x.crow_indices()[index], x.crow_indices().diff()[index]
    pointers = torch.cat([length.new_zeros(1), length.cumsum(0)])
    offset = torch.repeat_interleave(start - pointers[:-1], length)
    entries = offset + torch.arange(int(pointers[-1]), device=offset.device)
    return csr(pointers, x.col_indices()[entries], x.values()[entries], (len(index), x.shape[1]))


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of a ``.npz``; those of gnn-benchmark's layout as CSR ``x`` and ``adj``."""
    with np.load(path, allow_pickle=False) as file:
        if sum(part.file_size for part in file.zip.infolist()) > MOST:
            raise DataError(f"{path} must hold at most {MOST >> 30} GiB, got more")
        fields = {}
        for key in file.files:
            try:
                fields[key] = file[key]
            except ValueError as error:  # of objects; names of classes are often so stored
                if "allow_pickle" not in str(error):
                    raise
    for part, name in (("attr", "x"), ("adj", "adj")):
        if f"{part}_indptr" in fields:
            kept = tuple(fields[f"{part}_{key}"] for key in ("data", "indices", "indptr"))
            matrix = sp.csr_matrix(kept, tuple(fields[f"{part}_shape"]))
            matrix.check_format()
            fields[name] = matrix
    return fields
