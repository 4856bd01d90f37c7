"""Checkpoints: one folder each, safetensors and JSON, complete or absent.

A checkpoint is written to a temporary folder, synced, and renamed, so that a kill at any moment
leaves either the old ones or the new one. Its manifest holds the size and sha256 of each file.
Of tensors that are spread over processes each writes its own part, into a safetensors file beside
the others. There is no pickle anywhere: loading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from potstill.core.errors import CheckpointError, reading
from potstill.core.files import temporary_for, writing

__all__ = ["Saver", "load", "newest", "read_shards", "save", "write_shards", "write_tensors"]

_FORMAT = 1
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_FILES = {"state.safetensors", "state.json"}
_PARTS = "parts"
_PART = re.compile(rf"{_PARTS}/shard-\d+-[\w-]+\.safetensors")  # as torch names them
Parts = Callable[[Path], None]
"""Writes the parts of all processes for a checkpoint that is being written in that folder."""
# What reading JSON of a stranger raises: RecursionError where it is nested a thousand deep.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def save(
    folder: Path, step: int, state: Mapping[str, Any], keep: int = 2, parts: Parts | None = None
) -> Path:
    """Write ``state`` as the checkpoint of ``step``.

    Args:
        folder: Folder of the checkpoints; made when missing.
        step: Names the checkpoint.
        state: Nested dicts, lists and tuples of tensors, numbers, strings and None.
        keep: Number of newest checkpoints to keep.
        parts: Writes what is spread over processes.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: Something in ``state`` is of another type.
        DataError: The disk is full or cannot be written; older checkpoints are as they were.
    """
    final = folder / f"step-{step:09d}"
    if _is_whole(final):
        return final
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors, "state")
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    temporary = temporary_for(final)
    with writing(final, needed):
        for left in folder.glob(".writing-*"):  # a folder has one writer
            shutil.rmtree(left, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            if parts is not None:
                parts(temporary)
            _write(temporary, tree, tensors, step)
            shutil.rmtree(final, ignore_errors=True)  # a damaged one, at most
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    _sync(folder)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(folder: Path, tree: Any, tensors: Mapping[str, Tensor], step: int) -> None:
    files = {path.relative_to(folder).as_posix(): _describe(path)
             for path in (folder / _PARTS).glob("*")}  # fmt: skip
    files |= {"state.safetensors": write_tensors(tensors, folder / "state.safetensors")}
    (folder / "state.json").write_text(json.dumps(tree))
    files["state.json"] = _describe(folder / "state.json")
    manifest = {"format": _FORMAT, "step": step, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in folder.rglob("*"):
        _sync(path)


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Of sharded tensors each process writes its own part; all call it.

    Raises:
        DataError: In all processes: the disk of one is full or cannot be written.
    """
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch itself uses
        writer = HuggingFaceStorageWriter(str(folder / _PARTS), save_distributed=True)
        try:
            state_dict_saver.save({**tensors}, storage_writer=writer)
        except CheckpointException as error:  # of any of them
            first = next(iter(error.failures.values()))[0]
            with writing(folder):
                raise first from None
            raise


def read_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, sharded or whole, with what any number of processes has written; all call it.

    Raises:
        CheckpointError: They are not in it, or of other shapes.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    with reading(folder, "a checkpoint with all parts", CheckpointError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = HuggingFaceStorageReader(str(folder / _PARTS))
        alone = not torch.distributed.is_initialized()
        try:
            state_dict_loader.load({**tensors}, storage_reader=reader, no_dist=alone)
        except CheckpointException as error:  # which is no Exception
            raise ValueError(str(error)) from None


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A safetensors file, one tensor in memory at a time, hashed on the way to the disk.

    Also of tensors that share memory, as tied weights do: they are written each.

    Returns:
        Its size and sha256, as a manifest has them.
    """
    # Widest first: readers want each tensor aligned to its elements.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header: dict[str, Any] = {"__metadata__": {**metadata}} if metadata else {}
    end = 0
    for name, value in tensors.items():
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 8 + len(text) + end
    with path.open("wb") as file:
        for part in chain((len(text).to_bytes(8, "little"), text), map(_bytes, tensors.values())):
            digest.update(part)
            file.write(part)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _bytes(value: Tensor) -> Any:
    return value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data


class Saver:
    """Writes the checkpoints of a run, one after the other.

    Args:
        folder: Folder of the checkpoints.
        keep: Number of newest checkpoints to keep.
        behind: Write in a thread, from a copy of the state on the CPU, while training goes on.
    """

    def __init__(self, folder: Path, keep: int, behind: bool = False) -> None:
        self.folder, self.keep = folder, keep
        self._pool = ThreadPoolExecutor(1, "checkpoint") if behind else None
        self._running: Future[Path] | None = None

    def save(self, step: int, state: Mapping[str, Any], parts: Parts | None = None) -> None:
        """Write ``state``; behind the run, when the last one is written.

        Args:
            step: Names the checkpoint.
            state: As of `save`.
            parts: As of `save`; not behind the run.

        Raises:
            CheckpointError: As `save`; behind the run, that of the last one.
            DataError: Likewise.
        """
        if self._pool is None:
            save(self.folder, step, state, self.keep, parts)
            return
        self.wait()
        self._running = self._pool.submit(save, self.folder, step, _copied(state), self.keep)

    def wait(self) -> None:
        """Until all is on the disk."""
        if (running := self._running) is not None:
            self._running = None
            running.result()

    def close(self) -> None:
        """End the thread, when it has written what it has."""
        if self._pool is not None:
            self._pool.shutdown()


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, or None.

    Damaged ones (a missing file, a wrong size or hash) are passed over.
    """
    return next((path for path in reversed(_all(folder)) if _is_whole(path)), None)


def load(path: Path, *, checked: bool = False) -> dict[str, Any]:
    """Read the checkpoint at ``path``, on the CPU.

    Args:
        path: Folder of the checkpoint.
        checked: True where `newest` has just given it, which has read all of it once.

    Raises:
        CheckpointError: It is missing, incomplete, damaged or of a newer format.
    """
    if not (checked or _is_whole(path)):
        raise CheckpointError(
            f"checkpoint.load: {path} is missing, incomplete or damaged; "
            "another checkpoint of the run may be whole (checkpoint.newest finds it)"
        )
    try:
        tensors = load_file(path / "state.safetensors")
        state: dict[str, Any] = _unpack(json.loads((path / "state.json").read_text()), tensors)
    except (*_UNREADABLE, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint.load: {path} has the hashes of its manifest, yet cannot be read "
            f"({type(error).__name__}: {error}); it was not written by potstill"
        ) from error
    return state


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _is_whole(path: Path) -> bool:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files = manifest["files"]
        # No others: an empty manifest proves nothing, another name leads out of the folder.
        return (
            manifest["format"] <= _FORMAT
            and set(files) >= _FILES
            and all(name in _FILES or _PART.fullmatch(name) for name in files)
            and all(_describe(path / name) == files[name] for name in files)
        )
    except _UNREADABLE:
        return False


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pack(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """JSON of ``value``; its tensors go to ``tensors`` and leave their names behind."""
    if isinstance(value, Tensor):
        if value.dtype not in _DTYPES:
            raise CheckpointError(
                f"checkpoint.save: {where} must have a dtype of {', '.join(_DTYPES.values())}, got "
                f"{value.dtype}"
            )
        tensors[where] = value
        return {"tensor": where}
    if isinstance(value, Mapping):
        items = [[k, _pack(v, tensors, f"{where}/{k}")] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(v, tensors, f"{where}/{i}") for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise CheckpointError(
        f"checkpoint.save: {where} must be made of tensors, numbers, strings, lists and dicts, "
        f"got {type(value).__name__}"
    )


def _unpack(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    [(kind, content)] = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in content}
    if kind in ("list", "tuple"):
        return (tuple if kind == "tuple" else list)(_unpack(v, tensors) for v in content)
    return content
