"""What the teacher's modules take and give, on disk: phases 1 and 2 without the teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0
from torch import Tensor, nn

from potstill.acm.layers.budget import evaluation, images_for
from potstill.acm.layers.surgery import dense_readings, sources
from potstill.core import ConfigError, DataError, atomic, generator, reading

__all__ = ["Activations", "cache_activations"]

_INDEX, _DATA = "activations.json", "data-"


class Activations:
    """A map-style dataset of cached activations: one item an image, ``{path: (input, output)}``.

    Args:
        folder: Written by `cache_activations`. Files are mapped, not read.

    Raises:
        DataError: The folder holds no finished cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / _INDEX).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f"Activations: folder must hold {_INDEX}, got {error}; cache_activations writes it"
            ) from error
        with reading(self.folder, "a whole cache of activations"):
            self.paths: list[str] = index["paths"]
            self.length: int = index["images"]
            self._data = self.folder / index.get("folder", "")
            self._arrays = {path: self._pair(i) for i, path in enumerate(self.paths)}

    def _pair(self, index: int) -> tuple[np.ndarray, ...]:
        files = [self._data / f"{index}-{kind}.npy" for kind in _KINDS]
        arrays = tuple(np.load(file, mmap_mode="r") for file in files)
        for file, array in zip(files, arrays, strict=True):
            if array.dtype != np.float32 or array.ndim < 2 or len(array) != self.length:
                raise ValueError(f"{file.name} of {array.dtype} {list(array.shape)}")
        return arrays

    def __len__(self) -> int:
        return self.length

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files; it is not sent what is in them."""
        return Activations, (self.folder,)

    def __getitem__(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            path: (torch.from_numpy(inputs[index].copy()), torch.from_numpy(outputs[index].copy()))
            for path, (inputs, outputs) in self._arrays.items()
        }


_KINDS = ("input", "output")


def cache_activations(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    folder: str | Path,
    *,
    tokens: int | None = None,
    seed: int = 0,
) -> Activations:
    """Run the teacher once and keep what its modules take and give.

    Args:
        student: Adaptive model, from `acmize`; names the modules.
        teacher: The dense model.
        batches: Batches of images or (images, labels), read once; the order is kept.
        folder: Made when missing. A cache that is there stays whole until the new one is.
        tokens: Keep a random sample of so many tokens of each image; all by default.
        seed: Seed of the sample.

    Raises:
        ConfigError: No batch, or fewer than one token.
    """
    if tokens is not None and tokens < 1:
        raise ConfigError(f"cache_activations: tokens must be at least 1, got {tokens}")
    folder, where = Path(folder), sources(student)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{_DATA}{uuid4().hex}"
    new.mkdir()
    with ExitStack() as files, evaluation(teacher):
        rows = {(i, kind): files.enter_context(_Rows(new / f"{i}-{kind}.npy"))
                for i in range(len(where)) for kind in _KINDS}  # fmt: skip
        start = 0
        for batch in batches:
            images = images_for(teacher, batch)
            for i, pair in enumerate(dense_readings(teacher, where, images).values()):
                for kind, kept in zip(_KINDS, _sample(pair, tokens, seed, start, i), strict=True):
                    rows[i, kind].append(kept.numpy())
            start += len(images)
    if not start:
        raise ConfigError("cache_activations: batches must hold at least one batch, got none")
    index = {"paths": list(where), "images": start, "folder": new.name}
    with atomic(folder / _INDEX) as temporary:  # from here on the new one is the cache
        temporary.write_text(json.dumps(index))
    for old in folder.glob(f"{_DATA}*"):
        if old != new:
            shutil.rmtree(old, ignore_errors=True)
    return Activations(folder)


class _Rows:
    """A ``.npy`` file that grows; its header says how many rows there are when it is closed."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    def __enter__(self) -> _Rows:
        self.file = self.path.open("wb")
        return self

    def append(self, rows: np.ndarray) -> None:
        self.like = rows
        if not self.count:
            self._header()
        self.count += len(rows)
        self.file.write(np.ascontiguousarray(rows).tobytes())

    def _header(self) -> None:
        shape = (self.count, *self.like.shape[1:])
        about = {"descr": self.like.dtype.str, "fortran_order": False, "shape": shape}
        write_array_header_1_0(self.file, about)  # numpy leaves room for a larger count

    def __exit__(self, *error: object) -> None:
        if self.count:
            self.file.seek(0)
            self._header()
        self.file.close()


def _sample(
    pair: tuple[Tensor, Tensor], tokens: int | None, seed: int, start: int, module: int
) -> tuple[Tensor, Tensor]:
    """The same tokens of both, [images tokens width]."""
    inputs, outputs = (t.detach().float().cpu().flatten(1, -2) for t in pair)
    if tokens is None or tokens >= inputs.shape[1]:
        return inputs, outputs
    draw = generator("tokens", seed, start, module)
    rows = torch.rand(inputs.shape[:2], generator=draw).argsort(1)[:, :tokens, None]
    return inputs.take_along_dim(rows, 1), outputs.take_along_dim(rows, 1)
