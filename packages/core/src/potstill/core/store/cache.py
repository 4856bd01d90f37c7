"""A store of teacher outputs on disk, so that an expensive teacher runs once.

A cache is a folder: ``cache.json`` (what it is of), one memory-mapped ``.npy`` for each field, and
``done.npy``, a mark for each entry. An entry is a view of an item: with augmentation the teacher
must have seen what the student sees, so view v of item i is augmented by a generator of its own,
keyed by (seed, v, i), and student and teacher get the same pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from potstill.core.errors import CheckpointError, ConfigError, DataError, reading
from potstill.core.files import atomic, reserve, writing
from potstill.core.seed import generator
from potstill.core.store.data import MapDataset, fingerprint
from potstill.core.vocabulary.teacher import Frozen

__all__ = ["CachedDataset", "TeacherCache", "TopK"]

Augment = Callable[[Any, torch.Generator], Any]

_PROBES = 64


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

    def fields(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Arrays by name: dtype and shape of an entry."""
        if self.kind == "full":
            return {"logits": (np.float16, (self.classes,))}
        index = np.uint16 if self.classes <= 1 << 16 else np.int32
        return {
            "indices": (index, (self.k,)),
            "log_p": (np.float16, (self.k,)),
            "tail": (np.float32, ()),
        }


class TeacherCache:
    """Teacher outputs by view and item; `write` makes one, `open` checks and reads one.

    Args:
        folder: Of the cache.
        spec: What it is of, from `write` or `open`.
        mode: numpy's mode of the memory maps.
    """

    def __init__(self, folder: Path, spec: _Spec, mode: Literal["r", "r+"] = "r") -> None:
        self.folder, self.spec = folder, spec
        with reading(folder, "a whole teacher cache"):
            self._arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode=mode) for name in spec.fields()
            }
            self._done = np.load(folder / "done.npy", mmap_mode=mode)
            for name, array in {**self._arrays, "done": self._done}.items():
                if array.dtype.hasobject or len(array) != spec.views * spec.items:
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
        progress: bool = True,
    ) -> TeacherCache:
        """Run the teacher over a data set; an interrupted call goes on where it was.

        Args:
            folder: Made if absent; a cache found there must be of the same things.
            teacher: Input -> logits [N C].
            dataset: Items, or tuples whose first entry is the input.
            kind: ``"full"`` keeps logits in float16; ``"topk"`` the k most probable classes of
                ``softmax(z / T)`` in float16, and the mass of the others in float32.
            k: Classes kept, for ``"topk"``.
            T: Temperature of ``"topk"``.
            views: How many augmented views of each item.
            augment: ``augment(item, rng)`` as for `Batches`; needed for more than one view.
            seed: Of the views.
            batch_size: Items the teacher sees at a time.
            device: Where it runs.
            progress: Whether to show a bar.

        Raises:
            ConfigError: Options that contradict each other.
            CheckpointError: The folder holds a cache of another teacher, data set, transform or
                option; the message names them.
            DataError: Logits that are NaN, infinite upwards or beyond float16; a disk without the
                space for all of them. What was written before them stays.
        """
        if views < 1 or (views > 1 and augment is None):
            raise ConfigError(
                f"TeacherCache: views must be 1 without augment, at least 1 with it, got {views}"
            )
        model = Frozen(teacher).to(device)
        source = CachedDataset(dataset, None, views=views, augment=augment, seed=seed)
        classes = model(_inputs([source[0]]).to(device)).shape[-1]
        if kind not in ("full", "topk") or (kind == "topk" and not 1 <= k <= classes) or not T > 0:
            raise ConfigError(
                f"TeacherCache: kind full or topk, k in [1, {classes}] and T > 0 are needed, got "
                f"{kind!r}, {k}, {T}"
            )
        kept = k if kind == "topk" else 0
        identity = _identity(teacher, dataset, augment, seed)
        spec = _Spec(*identity, len(dataset), views, seed, kind, classes, kept, float(T))
        folder = Path(folder)
        if (folder / "cache.json").exists():
            _require_same(folder, spec)
        else:
            _create(folder, spec)
        cache = cls(folder, spec, "r+")
        cache._fill(model, source, batch_size, device, progress)
        model.release()
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

    def _fill(
        self,
        model: nn.Module,
        source: CachedDataset,
        batch_size: int,
        device: str | torch.device,
        progress: bool,
    ) -> None:
        todo = np.flatnonzero(~self._done)
        for start in _tracked(range(0, len(todo), batch_size), progress):
            entries = todo[start : start + batch_size]
            logits = model(_inputs([source[int(i)] for i in entries]).to(device))
            logits = logits.float().cpu()
            # Classes may be masked by -inf; of NaN or +inf no softmax can be taken.
            broken = ~(logits < float("inf")).flatten(1).all(1)
            if broken.any():
                raise DataError(
                    "TeacherCache: logits must not be NaN or +inf, got that for entries "
                    f"{entries[broken.numpy()][:16].tolist()} (view * items + item); check the "
                    "teacher's inputs and precision, then call write again: it goes on here"
                )
            for name, values in self._encode(logits).items():
                self._arrays[name][entries] = values
                self._arrays[name].flush()
            # Marked only once the values are on disk: a mark is a promise.
            self._done[entries] = True
            self._done.flush()

    def _encode(self, z: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        if self.spec.kind == "full":
            if z[z.isfinite()].abs().max() > torch.finfo(torch.float16).max:
                raise DataError(
                    f"TeacherCache: logits must fit float16, got {float(z.abs().max()):.6g}; "
                    "subtract each row's maximum in the teacher (no softmax sees it)"
                )
            return {"logits": z.half().numpy()}
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

    def __getitem__(self, entry: int) -> tuple[Any, ...]:
        """The item's entries, and the teacher's output."""
        view, index = divmod(int(entry), len(self._dataset))
        item = self._dataset[index]
        if self._augment is not None:
            item = self._augment(item, generator(self._seed, view, index))
        item = tuple(item) if isinstance(item, tuple | list) else (item,)
        return item if self._cache is None else (*item, self._cache[int(entry)])


def _inputs(items: list[Any]) -> Tensor:
    return default_collate([item[0] for item in items])


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


def _tracked(steps: range, progress: bool) -> Any:
    if not progress or not len(steps):
        return steps
    from rich.console import Console
    from rich.progress import track

    return track(steps, "teacher", console=Console(stderr=True), transient=True)
