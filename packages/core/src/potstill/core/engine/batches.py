"""Batches whose order is a pure function of seed, epoch and rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from potstill.core.engine.signals import begin
from potstill.core.engine.signature import describe, sketch
from potstill.core.errors import ConfigError
from potstill.core.seed import generator, seeded
from potstill.core.store.data import MapDataset

__all__ = ["Batches", "MapDataset", "Shard"]


class Shard(NamedTuple):
    """Whose batches: the seed of the run, and which of how many processes."""

    seed: int = 0
    rank: int = 0
    world: int = 1


class Batches:
    """Batches of a map-style dataset, for any number of processes, resumable at any step.

    With batch size B and W processes, an epoch is one permutation of the dataset, drawn from
    (seed, epoch) alone; its k-th global batch is entries [kBW, (k+1)BW), of which rank r takes
    every W-th from the r-th. So W processes with batch size B see the same global batches as one
    process with batch size BW, and resuming at a step is a matter of slicing.

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__``.
        batch_size: Items per process and step.
        shuffle: Draw a new permutation in every epoch; else keep the order of the dataset.
        drop_last: Leave out the incomplete last batch. Several processes need it.
        workers: Processes that load items; 0 loads in this one.
        collate: Makes a batch of a list of items; torch's `default_collate` by default.
        augment: ``augment(item, rng)`` with a generator keyed by (seed, epoch, index), so that the
            result depends neither on the number of workers nor on where a run was interrupted.

    Raises:
        ConfigError: An empty dataset, or a batch size below 1 or above the dataset.
    """

    def __init__(
        self,
        dataset: MapDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
    ) -> None:
        size = len(dataset)
        if batch_size < 1:
            raise ConfigError(f"Batches: batch_size must be at least 1, got {batch_size}")
        if size < (batch_size if drop_last else 1):
            raise ConfigError(
                f"Batches: the dataset must have at least one batch of {batch_size} items, got "
                f"{size}; lower batch_size or pass drop_last=False"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.workers = workers
        self.collate = collate or default_collate
        self.augment = augment
        self._order: tuple[Any, Tensor] | None = None  # of the last epoch that was asked for

    def __len__(self) -> int:
        """Batches in an epoch of one process."""
        return self.steps_per_epoch(1)

    def steps_per_epoch(self, world: int) -> int:
        """Steps in an epoch of ``world`` processes.

        Raises:
            ConfigError: The processes together take more than the dataset has, or would end an
                epoch with unequal batches.
        """
        size, chunk = len(self.dataset), self.batch_size * world
        if world > 1 and not self.drop_last and size % chunk:
            raise ConfigError(
                f"Batches: {world} processes need equal batches, but {size} items are not a "
                f"multiple of {chunk}; pass drop_last=True"
            )
        steps = size // chunk if self.drop_last else -(-size // chunk)
        if steps == 0:
            raise ConfigError(
                f"Batches: {world} processes x batch_size {self.batch_size} exceed the {size} "
                "items of the dataset; lower batch_size"
            )
        return steps

    def indices(self, step: int, shard: Shard) -> list[int]:
        """The items of ``step`` for one rank: a pure function, so anyone may ask again."""
        epoch, k = divmod(step, self.steps_per_epoch(shard.world))
        size, chunk = len(self.dataset), self.batch_size * shard.world
        mine = slice(k * chunk + shard.rank, min((k + 1) * chunk, size), shard.world)
        if not self.shuffle:
            return list(range(size)[mine])
        key = size, shard.seed, epoch
        if self._order is None or self._order[0] != key:  # as long as an epoch of steps
            order = torch.randperm(size, generator=generator("order", shard.seed, epoch))
            self._order = key, order
        chosen: list[int] = self._order[1][mine].tolist()
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None}

    def stream(self, start: int, shard: Shard) -> Iterator[Any]:
        """Batches from step ``start`` on, without end."""
        return begin(
            DataLoader(
                _Keyed(self.dataset, self.augment, shard.seed),  # type: ignore[arg-type]
                batch_sampler=_Order(self, start, shard),
                num_workers=self.workers,
                collate_fn=self.collate,
                # Making an iterator draws a number: not from the stream that dropout uses.
                generator=generator("loader", shard.seed),
                pin_memory=self.workers > 0 and torch.cuda.is_available(),
            )
        )

    def fingerprint(self) -> str:
        """Kind and size of the dataset, and digests of three of its items and of the options."""
        size = len(self.dataset)
        with seeded("fingerprint"):
            items = [self.dataset[i] for i in sorted({0, size // 2, size - 1})]
        options = self.shuffle, self.drop_last, describe(self.collate), describe(self.augment)
        return f"{type(self.dataset).__qualname__} of {size} items {sketch(items, options)}"


class _Order(Sampler[list[tuple[int, int]]]):
    """(epoch, index) of every item of one rank, batch after batch, without end."""

    def __init__(self, batches: Batches, start: int, shard: Shard) -> None:
        self.batches, self.start, self.shard = batches, start, shard

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.batches.steps_per_epoch(self.shard.world)
        epoch, k = divmod(self.start, per_epoch)
        while True:
            for step in range(epoch * per_epoch + k, (epoch + 1) * per_epoch):
                yield [(epoch, i) for i in self.batches.indices(step, self.shard)]
            epoch, k = epoch + 1, 0


class _Keyed:
    """The dataset with its augmentation, indexed by (epoch, index)."""

    def __init__(
        self,
        dataset: MapDataset,
        augment: Callable[[Any, torch.Generator], Any] | None,
        seed: int,
    ) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        item = self.dataset[index]
        if self.augment is None:
            return item
        return self.augment(item, generator("augment", self.seed, epoch, index))
