"""Sources: what a step trains on, made of whatever people hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from potstill.core.engine.batches import Shard
from potstill.core.engine.signals import begin, drawing
from potstill.core.engine.signature import describe, sketch
from potstill.core.errors import ConfigError
from potstill.core.seed import generator, key, seeded

__all__ = ["Source", "as_source"]


@runtime_checkable
class Source(Protocol):
    """Batches from any step on, how many make an epoch, and a fingerprint.

    A source may also have ``batch_size`` (items per process and batch: runs then continue on any
    number of processes with the same global batch), ``indices(step, shard)`` (the items of a batch,
    named when a loss is not finite), ``whole`` (all processes get the same batches: they then
    train as one, with the same dropout), ``state_dict`` and ``load_state_dict`` (kept in
    checkpoints), and ``caveat`` (what its resuming does not promise, said once).
    """

    def steps_per_epoch(self, world: int) -> int | None:
        """Batches of one process in an epoch of ``world`` processes; None where that is unknown."""
        ...

    def stream(self, start: int, shard: Shard) -> Iterator[Any]:
        """Batches of one process from batch ``start`` on, without end."""
        ...

    def fingerprint(self) -> str:
        """Part of the run's signature: another value means other data."""
        ...


def as_source(batches: Any) -> Source:
    """A `Source` of what people hold.

    Args:
        batches: A `Source` such as `Batches`; a sequence of ready batches, cycled (full batch:
            ``[data]``); a function ``draw(step, rank, world)``; a ``DataLoader`` over a map-style
            dataset, whose order then is a pure function of (seed, epoch); a ``StatefulDataLoader``
            or another iterable with ``state_dict`` and ``load_state_dict``; or any other iterable
            of batches (webdataset, streaming Hugging Face datasets), whose epoch begins anew when
            a run is continued.

    Raises:
        ConfigError: Something else, an empty sequence, or a dataset of single items.
    """
    if isinstance(batches, Source):
        return batches
    if isinstance(batches, Sequence) and not isinstance(batches, str | bytes) and len(batches):
        return _Ready(batches)
    if _has_state(batches) and isinstance(batches, Iterable):
        return _Streamed(batches)
    if isinstance(getattr(batches, "dataset", batches), IterableDataset):
        return _Streamed(batches)
    if isinstance(batches, DataLoader):
        return _Loaded(batches)
    if callable(batches) and not isinstance(batches, type):
        return _Drawn(batches)
    if hasattr(batches, "__getitem__") and not isinstance(batches, Sequence):
        raise ConfigError(
            f"fit: batches must yield batches, got a dataset of single items "
            f"({type(batches).__name__}); give it to Batches(dataset, batch_size) or a DataLoader"
        )
    if isinstance(batches, Iterable) and not isinstance(batches, str | bytes | Sequence):
        return _Streamed(batches)
    raise ConfigError(
        "fit: batches must be Batches(dataset, batch_size), a DataLoader, an iterable or a "
        "non-empty sequence of batches, or a function draw(step, rank, world), got "
        f"{type(batches).__name__}"
    )


class _Ready:
    """Batches in memory, one after another, again and again."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches
        self.whole = len(batches) == 1

    def steps_per_epoch(self, world: int) -> int:
        return max(len(self.batches) // world, 1)

    def stream(self, start: int, shard: Shard) -> Iterator[Any]:
        size = len(self.batches)
        return (self.batches[(n * shard.world + shard.rank) % size] for n in count(start))

    def fingerprint(self) -> str:
        return f"{len(self.batches)} batches {sketch(list(self.batches))}"


class _Drawn:
    """A function of (step, rank, world)."""

    def __init__(self, draw: Callable[[int, int, int], Any]) -> None:
        self.draw = draw

    def steps_per_epoch(self, world: int) -> int | None:
        return None

    def stream(self, start: int, shard: Shard) -> Iterator[Any]:
        return (self.draw(step, shard.rank, shard.world) for step in count(start))

    def fingerprint(self) -> str:
        # The name alone: what the function holds may change while it draws, its batches may not.
        name = describe(self.draw).partition("(")[0].partition(":")[0]
        with seeded("fingerprint"), drawing():
            return f"{name} {sketch(self.draw(0, 0, 1))}"


class _Loaded:
    """A DataLoader over a map-style dataset: its own sampler, seeded by (seed, epoch).

    Process r of W takes every W-th batch. What the dataset draws from the global streams while it
    makes a batch is a function of (seed, step, rank), so it does not depend on workers or resumes.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        inner = loader.sampler
        self.replicas = inner.num_replicas if isinstance(inner, DistributedSampler) else 1

    @property
    def batch_size(self) -> int | None:
        return self.loader.batch_size if self.replicas == 1 else None

    def steps_per_epoch(self, world: int) -> int:
        if self.replicas not in (1, world):
            raise ConfigError(
                f"fit: the DataLoader's sampler must share among {world} processes, got "
                f"num_replicas={self.replicas}; leave the DistributedSampler out"
            )
        batches = len(self.sampler) if hasattr(self.sampler, "__len__") else len(self._order(0, 0))
        steps = batches // (world if self.replicas == 1 else 1)
        if not steps:
            raise ConfigError(
                f"fit: the DataLoader must have at least {world} batches an epoch, got {batches}; "
                "lower batch_size or pass drop_last=False"
            )
        return steps

    def indices(self, step: int, shard: Shard) -> list[Any]:
        """The keys of the items in batch ``step``."""
        epoch, k = divmod(step, self.steps_per_epoch(shard.world))
        chosen = self._order(shard.seed, epoch)[self._place(k, shard)]
        return list(chosen) if isinstance(chosen, list | tuple) else [chosen]

    def stream(self, start: int, shard: Shard) -> Iterator[Any]:
        loader = self.loader
        sampler = _Forever(self, start, shard)
        whole = loader.batch_sampler is None  # the dataset gives batches
        again: DataLoader[Any] = DataLoader(
            _Keyed(loader.dataset, shard),  # type: ignore[arg-type]
            batch_size=None if whole else 1,
            sampler=sampler if whole else None,
            batch_sampler=None if whole else sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=generator("loader", shard.seed),
            prefetch_factor=loader.prefetch_factor,
        )
        return begin(again)

    def fingerprint(self) -> str:
        loader, order = self.loader, self._order(0, 0)
        keys = [order[place] for place in sorted({0, len(order) // 2, len(order) - 1})]
        with seeded("fingerprint"):
            items = [loader.dataset[k[0] if isinstance(k, list) else k] for k in keys]
        sampler = describe(type(self.sampler)), describe(type(loader.sampler))
        return (
            f"{type(loader.dataset).__qualname__} {len(order)} batches of {loader.batch_size} "
            f"{sketch(sampler, describe(loader.collate_fn), items)}"
        )

    def _place(self, k: int, shard: Shard) -> int:
        return k if self.replicas > 1 else k * shard.world + shard.rank

    def _order(self, seed: int, epoch: int) -> list[Any]:
        """All batches of an epoch, as keys of the dataset."""
        parts = [self.sampler, self.loader.sampler, getattr(self.loader, "generator", None)]
        streams = {id(g): g for g in (getattr(p, "generator", p) for p in parts) if _draws(g)}
        before = [(g, g.get_state()) for g in streams.values()]
        try:
            with seeded("order", seed, epoch):
                for stream, _ in before:
                    stream.manual_seed(key("order", seed, epoch))
                _set_epoch(epoch, *parts)
                return list(self.sampler)
        finally:
            for stream, state in before:
                stream.set_state(state)


class _Forever:
    """Keys of the batches of one process, epoch after epoch, each with the number of its batch."""

    def __init__(self, source: _Loaded, start: int, shard: Shard) -> None:
        self.source, self.start, self.shard = source, start, shard

    def __iter__(self) -> Iterator[Any]:
        per_epoch = self.source.steps_per_epoch(self.shard.world)
        begun, first = divmod(self.start, per_epoch)
        for epoch in count(begun):
            order = self.source._order(self.shard.seed, epoch)
            for k in range(first, per_epoch):
                chosen = order[self.source._place(k, self.shard)]
                number = epoch * per_epoch + k
                single = self.source.loader.batch_sampler is None
                yield (number, chosen) if single else [(number, key) for key in chosen]
            first = 0


class _Keyed:
    """A dataset whose global streams are set from the number of the batch."""

    def __init__(self, dataset: Any, shard: Shard) -> None:
        self.dataset, self.shard = dataset, shard

    def __getitem__(self, numbered: tuple[int, Any]) -> Any:
        with seeded("batch", self.shard.seed, numbered[0], self.shard.rank):
            return self.dataset[numbered[1]]

    def __getitems__(self, numbered: list[tuple[int, Any]]) -> Any:
        keys = [key for _, key in numbered]
        with seeded("batch", self.shard.seed, numbered[0][0], self.shard.rank):
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(keys)
            return [self.dataset[key] for key in keys]


class _Streamed:
    """An iterable of batches, begun again when it ends; process r of W takes every W-th batch."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches: Any = batches
        self.exact = _has_state(batches)
        self.continued = False

    @property
    def caveat(self) -> str:
        if self.exact:
            return ""
        return (
            f"fit: a run that is continued begins its epoch of {type(self.batches).__name__} anew, "
            "since an iterable cannot say where it was; a StatefulDataLoader, or a DataLoader over "
            "a map-style dataset, continues exactly"
        )

    def steps_per_epoch(self, world: int) -> int | None:
        try:
            return max(len(self.batches) // world, 1)
        except TypeError:
            return None

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict() if self.exact else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.exact:
            self.batches.load_state_dict(state)
            self.continued = True

    def stream(self, start: int, shard: Shard) -> Iterator[Any]:
        begun, taken = start // (self.steps_per_epoch(shard.world) or start + 1), 0
        for epoch in count(begun):
            _set_epoch(epoch, self.batches, *(getattr(self.batches, n, None) for n in _PARTS))
            found, mine = 0, None
            for found, batch in enumerate(begin(self.batches), 1):
                mine = batch if (found - 1) % shard.world == shard.rank else mine
                if found % shard.world == 0:
                    taken += 1
                    yield mine
            if found < shard.world and not self.continued:
                raise ConfigError(
                    f"fit: batches must go on to the end of the budget, got "
                    f"{type(self.batches).__name__} that ended after {taken} steps and could not "
                    "be begun again; give something that can be iterated over many times"
                )
            self.continued = False

    def fingerprint(self) -> str:
        dataset = getattr(self.batches, "dataset", self.batches)
        size = getattr(self.batches, "batch_size", None)
        return (
            f"{type(self.batches).__qualname__} of {type(dataset).__qualname__}, batches of {size}"
        )


_PARTS = ("dataset", "sampler", "batch_sampler")


def _set_epoch(epoch: int, *parts: Any) -> None:
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def _has_state(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def _draws(thing: Any) -> bool:
    return hasattr(thing, "manual_seed") and hasattr(thing, "get_state")
