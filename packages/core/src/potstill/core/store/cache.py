"""A store of teacher outputs on disk, so that an expensive teacher runs once.

A cache is a folder: ``cache.json`` (what it is of), one memory-mapped ``.npy`` for each field, and
``done.npy``, a mark for each entry. An entry is a view of an item: with augmentation the teacher
must have seen what the student sees, so view v of item i is augmented by a generator of its own,
keyed by (seed, v, i), and student and teacher get the same pixels.

Several processes (torchrun) write one cache: each asks the teacher about a part of the entries, and
writes its rows only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from potstill.core.errors import CheckpointError, ConfigError, DataError, reading
from potstill.core.files import atomic, reserve, writing
from potstill.core.seed import generator
from potstill.core.store.asking import Asking, collate
from potstill.core.store.data import MapDataset, fingerprint
from potstill.core.store.lock import Lock
from potstill.core.vocabulary.teacher import Frozen

__all__ = ["CachedDataset", "TeacherCache", "TopK"]

Augment = Callable[[Any, torch.Generator], Any]

_PROBES = 64
_LARGEST = 1 << 20  # bytes of a description


class TopK(NamedTuple):
    """A sparse teacher output: arguments of `sparse_kl`, and what was left out.

    Attributes:
        indices: The k most probable classes, [..., k] int64.
        log_p: Their log-probabilities, [..., k] float32.
        tail: Mass of all other classes, [...] float32.
    """

    indices: Tensor
    log_p: Tensor
    tail: Tensor


@dataclass(frozen=True)
class _Spec:
    """What a cache is of; two caches are the same where this is."""

    teacher: str
    data: str
    transform: str
    items: int
    views: int
    seed: int
    kind: Literal["full", "topk"]
    classes: int
    k: int
    T: float
    shape: Sequence[int] = ()  # of the output of an item; empty in old ones: (classes,)
    class_dim: int = -1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", list(self.shape or (self.classes,)))

    def fields(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Arrays by name: dtype and shape of an entry."""
        if self.kind == "full":
            return {"logits": (np.float16, tuple(self.shape))}
        index = np.uint16 if self.classes <= 1 << 16 else np.int32
        places = list(self.shape)
        del places[self.class_dim]
        return {
            "indices": (index, (*places, self.k)),
            "log_p": (np.float16, (*places, self.k)),
            "tail": (np.float32, tuple(places)),
        }


class TeacherCache:
    """Teacher outputs by view and item; `write` makes one, `open` checks and reads one.

    Args:
        folder: Folder of the cache.
        spec: Description of its content, from `write` or `open`.
        mode: numpy's mode of the memory maps.
    """

    def __init__(self, folder: Path, spec: _Spec, mode: Literal["r", "r+"] = "r") -> None:
        self.folder, self.spec = folder, spec
        with reading(folder, "a whole teacher cache"):
            self._arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode=mode) for name in spec.fields()
            }
            self._done = np.load(folder / "done.npy", mmap_mode=mode)
            wanted = {**spec.fields(), "done": (np.bool_, ())}
            for name, array in {**self._arrays, "done": self._done}.items():
                dtype, shape = wanted[name]
                if array.dtype != dtype or array.shape != (spec.views * spec.items, *shape):
                    raise ValueError(f"{name}.npy of {array.dtype} {list(array.shape)}")

    @classmethod
    def write(
        cls,
        folder: str | Path,
        teacher: nn.Module,
        dataset: MapDataset,
        *,
        kind: Literal["full", "topk"] = "full",
        k: int = 0,
        T: float = 1.0,
        views: int = 1,
        augment: Augment | None = None,
        seed: int = 0,
        batch_size: int = 256,
        device: str | torch.device = "cpu",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        inputs: Sequence[str] | None = None,
        output: Callable[[Any], Tensor] | None = None,
        class_dim: int | None = None,
        workers: int = 0,
        progress: bool = True,
    ) -> TeacherCache:
        """Run the teacher over a data set; an interrupted call goes on where it was.

        In several processes all call it; the folder is one that all of them see.

        Args:
            folder: Made if absent; a cache found there must be of the same things.
            teacher: Input -> logits [N C], or anything of equal shape for all items, such as
                [N C H W] and [N tokens C]. It may return what `tensor_of` takes a tensor from.
            dataset: Items, or tuples whose first entry is the input; or mappings, whose entries
                the teacher gets by name as far as its ``forward`` knows them.
            kind: ``"full"`` keeps logits in float16; ``"topk"`` the k most probable classes of
                ``softmax(z / T)`` in float16, and the mass of the others in float32.
            k: Classes kept, for ``"topk"``.
            T: Temperature of ``"topk"``.
            views: Number of augmented views of each item.
            augment: ``augment(item, rng)`` as for `Batches`; needed for more than one view.
            seed: Seed of the views.
            batch_size: Items the teacher sees at a time.
            device: Device of the computation.
            precision: Numeric precision of the teacher, by autocast.
            inputs: Names of the entries that the teacher gets, where items are mappings.
            output: Takes the tensor out of what the teacher returns, as `tensor_of` does.
            class_dim: Axis of the classes in the output, for ``"topk"`` of more than [N C]; what is
                stored has the k classes last.
            workers: Processes that read the data set.
            progress: Show a bar.

        Raises:
            ConfigError: Options that contradict each other.
            CheckpointError: The folder holds a cache of another teacher, data set, transform or
                option; the message names them. Or another program writes it at the moment.
            DataError: Logits that are NaN, infinite upwards or beyond float16; a disk without the
                space for all of them. What was written before them stays.
        """
        if views < 1 or (views > 1 and augment is None):
            raise ConfigError(
                f"TeacherCache: views must be 1 without augment, at least 1 with it, got {views}"
            )
        ask = Asking(teacher, inputs, output, device, precision)
        source = CachedDataset(dataset, None, views=views, augment=augment, seed=seed)
        shape = list(ask(collate([source[0]])).shape[1:])
        axis = _axis(kind, class_dim, shape)
        classes = shape[axis]
        if kind not in ("full", "topk") or (kind == "topk" and not 1 <= k <= classes) or not T > 0:
            raise ConfigError(
                f"TeacherCache: kind full or topk, k in [1, {classes}] and T > 0 are needed, got "
                f"{kind!r}, {k}, {T}"
            )
        spec = _Spec(
            *_identity(teacher, dataset, augment, seed), len(dataset), views, seed, kind, classes,
            k if kind == "topk" else 0, float(T), shape, axis, precision,
        )  # fmt: skip
        folder, (rank, world) = Path(folder), _place()
        with ExitStack() as stack:
            with _together():
                if rank == 0:
                    stack.enter_context(Lock(folder))
                    if (folder / "cache.json").exists():
                        _require_same(folder, spec)
                    else:
                        _create(folder, spec)
            with _together():  # nobody writes before all know what is missing
                cache = cls(folder, spec)
                todo = np.array_split(np.flatnonzero(~cache._done), world)[rank]
            with _together():
                part: Any = Subset(source, todo.tolist())  # type: ignore[arg-type]
                loader: Any = DataLoader(
                    part, batch_size, num_workers=workers,
                    collate_fn=collate, generator=torch.Generator(),
                )  # fmt: skip
                cache._fill(ask, todo, _tracked(loader, progress and rank == 0))
        ask.model.release()
        return cls(folder, spec)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        teacher: nn.Module,
        dataset: MapDataset,
        augment: Augment | None = None,
    ) -> TeacherCache:
        """Open a complete cache, after checking that it is of these.

        Raises:
            DataError: There is none, or it is incomplete.
            CheckpointError: It is of another teacher, data set or transform.
        """
        folder = Path(folder)
        if not (folder / "cache.json").exists():
            raise DataError(f"TeacherCache: no cache in {folder}; make one with TeacherCache.write")
        found = _read(folder)
        identity = _identity(teacher, dataset, augment, found.seed)
        wanted = {**asdict(found), "items": len(dataset)}
        wanted |= dict(zip(("teacher", "data", "transform"), identity, strict=True))
        _require_same(folder, _Spec(**wanted))
        cache = cls(folder, found)
        if not cache.complete:
            raise DataError(
                f"TeacherCache: {folder} holds {int(cache._done.sum())} of {len(cache)} entries; "
                "call TeacherCache.write with the same arguments to finish it"
            )
        return cache

    @property
    def complete(self) -> bool:
        """Whether every entry has been written."""
        return bool(self._done.all())

    def __len__(self) -> int:
        """Entries: views times items."""
        return self.spec.views * self.spec.items

    def __getitem__(self, entry: int | Tensor) -> Tensor | TopK:
        """Output of one entry (view * items + item), or of several; logits in float32."""
        at = entry.numpy() if isinstance(entry, Tensor) else entry
        values = {name: np.asarray(array[at]) for name, array in self._arrays.items()}
        if self.spec.kind == "full":
            return torch.from_numpy(values["logits"].astype(np.float32))
        return TopK(
            torch.from_numpy(values["indices"].astype(np.int64)),
            torch.from_numpy(values["log_p"].astype(np.float32)),
            torch.from_numpy(values["tail"].astype(np.float32)),
        )

    def dataset(self, dataset: MapDataset, augment: Augment | None = None) -> CachedDataset:
        """The data set with the teacher's output as the last entry of each item."""
        return CachedDataset(
            dataset, self, views=self.spec.views, augment=augment, seed=self.spec.seed
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.spec)  # a map would be pickled as what it maps

    def _fill(self, ask: Asking, todo: np.ndarray[Any, Any], batches: Iterable[Any]) -> None:
        start = 0
        for batch in batches:
            logits = ask(batch)
            entries = todo[start : start + len(logits)]
            start += len(logits)
            if list(logits.shape[1:]) != self.spec.shape:
                raise DataError(
                    f"TeacherCache: the output for each item must be {self.spec.shape}, got "
                    f"{list(logits.shape[1:])} for entry {entries[0]}; pad the items to one length"
                )
            # Classes may be masked by -inf; of NaN or +inf no softmax can be taken.
            broken = ~(logits < float("inf")).flatten(1).all(1)
            if broken.any():
                raise DataError(
                    "TeacherCache: logits must not be NaN or +inf, got that for entries "
                    f"{entries[broken.numpy()][:16].tolist()} (view * items + item); check the "
                    "teacher's inputs and precision, then call write again: it goes on here"
                )
            for name, values in self._encode(logits).items():
                _put(self._arrays[name], entries, values)
            # Marked only once the values are on disk: a mark is a promise.
            _put(self._done, entries, np.ones(len(entries), bool))

    def _encode(self, z: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        if self.spec.kind == "full":
            if z[z.isfinite()].abs().max() > torch.finfo(torch.float16).max:
                raise DataError(
                    f"TeacherCache: logits must fit float16, got {float(z.abs().max()):.6g}; "
                    "subtract each row's maximum in the teacher (no softmax sees it)"
                )
            return {"logits": z.half().numpy()}
        z = z.movedim(self.spec.class_dim, -1)
        log_p, indices = torch.log_softmax(z / self.spec.T, -1).topk(self.spec.k, -1)
        tail = (1 - log_p.double().exp().sum(-1)).clamp_min(0)
        index = self._arrays["indices"].dtype
        return {
            "indices": indices.numpy().astype(index),
            "log_p": log_p.half().numpy(),
            "tail": tail.float().numpy(),
        }


class CachedDataset:
    """Views of a data set's items, each with the teacher's output behind it.

    Entry ``view * items + item`` is that view of that item: shuffle over all of them with
    `Batches`, without an ``augment`` there, since the views are the augmentation.
    """

    def __init__(
        self,
        dataset: MapDataset,
        cache: TeacherCache | None,
        *,
        views: int,
        augment: Augment | None,
        seed: int,
    ) -> None:
        if cache is not None and len(dataset) != cache.spec.items:
            raise DataError(
                f"TeacherCache: the data set must have {cache.spec.items} items, got "
                f"{len(dataset)}; was the cache written for another split?"
            )
        self._dataset, self._cache = dataset, cache
        self._views, self._augment, self._seed = views, augment, seed

    def __len__(self) -> int:
        """Views times items."""
        return self._views * len(self._dataset)

    def __getitem__(self, entry: int) -> Any:
        """The item's entries, and the teacher's output; of a mapping, as its entry ``teacher``."""
        view, index = divmod(int(entry), len(self._dataset))
        item = self._dataset[index]
        if self._augment is not None:
            item = self._augment(item, generator(self._seed, view, index))
        if isinstance(item, Mapping):
            return item if self._cache is None else {**item, "teacher": self._cache[int(entry)]}
        item = tuple(item) if isinstance(item, tuple | list) else (item,)
        return item if self._cache is None else (*item, self._cache[int(entry)])


def _axis(kind: str, class_dim: int | None, shape: list[int]) -> int:
    """The axis of the classes from the end, as a single entry has it too."""
    if kind == "full" and class_dim is not None:
        raise ConfigError("TeacherCache: class_dim is for kind='topk'; 'full' keeps all of it")
    if kind == "topk" and class_dim is None and len(shape) != 1:
        raise ConfigError(
            f"TeacherCache: class_dim must say which axis of {['N', *shape]} has the classes, got "
            "None; pass 1 for maps, -1 for tokens"
        )
    axis = -1 if class_dim is None else class_dim - (len(shape) + 1) * (class_dim >= 0)
    if not -len(shape) <= axis < 0:
        raise ConfigError(
            f"TeacherCache: class_dim must be an axis of {['N', *shape]} behind the first, got "
            f"{class_dim}"
        )
    return axis


def _place() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def _together() -> Iterator[None]:
    """All processes leave the block, or each learns what one of them failed of."""
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    _, world = _place()
    said: list[Any] = [None] * world
    if world > 1:
        dist.all_gather_object(said, failed and str(failed))
    if failed is not None:
        raise failed
    for other, text in enumerate(said):
        if text:
            raise DataError(f"TeacherCache: process {other} failed: {text}")


def _put(array: Any, entries: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
    """Write rows to the file of a memory map, these bytes only: others write the rows beside."""
    row = array.nbytes // max(len(array), 1)
    path = Path(array.filename)
    with writing(path), path.open("r+b", buffering=0) as file:
        for run in np.split(np.arange(len(entries)), np.flatnonzero(np.diff(entries) != 1) + 1):
            file.seek(array.offset + int(entries[run[0]]) * row)
            file.write(np.ascontiguousarray(values[run], array.dtype).tobytes())
        os.fsync(file.fileno())


def _identity(
    teacher: nn.Module, dataset: MapDataset, augment: Augment | None, seed: int
) -> tuple[str, str, str]:
    """Hashes of the teacher, the data, and of what the transform does.

    The data and the transform are known by what they give: items spread over the data set, and
    their first views. A change that touches none of these 64 items is not seen.
    """
    model = teacher.model if isinstance(teacher, Frozen) else teacher
    state = {name: value for name, value in model.state_dict().items()}
    step = max(len(dataset) // _PROBES, 1)
    probes = [(i, dataset[i]) for i in range(0, len(dataset), step)]
    seen = (
        [augment(item, generator(seed, 0, i)) for i, item in probes] if augment is not None else []
    )
    return (
        fingerprint(repr(model), state),
        fingerprint(len(dataset), [item for _, item in probes]),
        fingerprint(seed, seen),
    )


def _create(folder: Path, spec: _Spec) -> None:
    """Empty arrays first, the description last: a folder without it is no cache."""
    entries = spec.views * spec.items
    folder.mkdir(parents=True, exist_ok=True)
    for name, (dtype, shape) in {**spec.fields(), "done": (np.bool_, ())}.items():
        needed = entries * math.prod(shape) * np.dtype(dtype).itemsize
        with atomic(folder / f"{name}.npy") as path, writing(folder / f"{name}.npy", needed):
            np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(entries, *shape)).flush()
            reserve(path, path.stat().st_size)
    with atomic(folder / "cache.json") as path:
        path.write_text(json.dumps(asdict(spec), indent=1))


def _read(folder: Path) -> _Spec:
    path = folder / "cache.json"
    with reading(path, "the description of a teacher cache"):
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        found = _Spec(**json.loads(path.read_text()))
        known = {f.name: f.type for f in fields(_Spec)}
        for name, value in asdict(found).items():
            if known[name] == "int" and not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}")
    return found


def _require_same(folder: Path, wanted: _Spec) -> None:
    found, asked = asdict(_read(folder)), asdict(wanted)
    other = [
        f"{key} {found[key]} (asked: {asked[key]})" for key in asked if found[key] != asked[key]
    ]
    if other:
        raise CheckpointError(
            f"TeacherCache: {folder} is a cache of another {', '.join(other)}; choose another "
            "folder, or delete it"
        )


def _tracked(batches: Any, progress: bool) -> Iterable[Any]:
    if not progress or not len(batches):
        return batches
    from rich.console import Console
    from rich.progress import track

    return track(batches, "teacher", len(batches), console=Console(stderr=True), transient=True)
