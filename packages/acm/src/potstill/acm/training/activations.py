"""What the teacher's modules take and give, on disk: phases 1 and 2 without the teacher."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from potstill.acm.layers.budget import all_batches, evaluation, images_for, images_of
from potstill.acm.layers.surgery import dense_readings, sources
from potstill.core import ConfigError, DataError, atomic, generator, reading

__all__ = ["Activations", "cache_activations"]

_INDEX = "activations.json"


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
            self._arrays = {path: self._pair(i) for i, path in enumerate(self.paths)}

    def _pair(self, index: int) -> tuple[np.ndarray, ...]:
        files = [self.folder / f"{index}-{kind}.npy" for kind in _KINDS]
        arrays = tuple(np.load(file, mmap_mode="r") for file in files)
        for file, array in zip(files, arrays, strict=True):
            if array.dtype != np.float32 or array.ndim < 2 or len(array) != self.length:
                raise ValueError(f"{file.name} of {array.dtype} {list(array.shape)}")
        return arrays

    def __len__(self) -> int:
        return self.length

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
        batches: Batches of images or (images, labels); the order is kept.
        folder: Made when missing. Written whole: the index comes last.
        tokens: Keep a random sample of so many tokens of each image; all by default.
        seed: Seed of the sample.

    Raises:
        ConfigError: No batch, or fewer than one token.
    """
    if tokens is not None and tokens < 1:
        raise ConfigError(f"cache_activations: tokens must be at least 1, got {tokens}")
    held = all_batches("cache_activations", batches)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _INDEX).unlink(missing_ok=True)
    where = sources(student)
    count = sum(len(images_of(batch)) for batch in held)
    arrays: dict[tuple[str, str], Any] = {}
    start = 0
    with evaluation(teacher):
        for batch in held:
            images = images_for(teacher, batch)
            rows = slice(start, start + len(images))
            for i, (path, pair) in enumerate(dense_readings(teacher, where, images).items()):
                for kind, kept in zip(_KINDS, _sample(pair, tokens, seed, start, i), strict=True):
                    if (path, kind) not in arrays:
                        shape = (count, *kept.shape[1:])
                        arrays[path, kind] = open_memmap(
                            folder / f"{i}-{kind}.npy", "w+", kept.numpy().dtype, shape
                        )
                    arrays[path, kind][rows] = kept.numpy()
            start += len(images)
    for array in arrays.values():
        array.flush()
    with atomic(folder / _INDEX) as temporary:
        temporary.write_text(json.dumps({"paths": list(where), "images": count}))
    return Activations(folder)


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
