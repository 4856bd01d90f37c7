"""Checkpoints: one folder each, safetensors and JSON, complete or absent.

A checkpoint is written to a temporary folder, synced, and renamed, so that a kill at any moment
leaves either the old ones or the new one. Its manifest holds the size and sha256 of each file.
There is no pickle anywhere: loading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from potstill.core.errors import CheckpointError

__all__ = ["load", "newest", "save"]

_FORMAT = 1


def save(folder: Path, step: int, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write ``state`` as the checkpoint of ``step``.

    Args:
        folder: Where checkpoints are collected; made when missing.
        step: Names the checkpoint.
        state: Nested dicts, lists and tuples of tensors, numbers, strings and None.
        keep: How many of the newest to keep.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: Something in ``state`` is of another type.
    """
    final = folder / f"step-{step:09d}"
    if _is_whole(final):
        return final
    temporary = folder / f".writing-{final.name}-{os.getpid()}"
    for left in folder.glob(".writing-*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors, "state")
    save_file(tensors, temporary / "state.safetensors")
    (temporary / "state.json").write_text(json.dumps(tree))
    files = {name: _describe(temporary / name) for name in ("state.safetensors", "state.json")}
    manifest = {"format": _FORMAT, "step": step, "files": files}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in temporary.iterdir():
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)  # a damaged one, at most
    temporary.rename(final)
    _sync(folder)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, or None.

    Damaged ones (a missing file, a wrong size or hash) are passed over.
    """
    return next((path for path in reversed(_all(folder)) if _is_whole(path)), None)


def load(path: Path) -> dict[str, Any]:
    """Read the checkpoint at ``path``, on the CPU.

    Raises:
        CheckpointError: It is missing, incomplete, damaged or of a newer format.
    """
    if not _is_whole(path):
        raise CheckpointError(
            f"checkpoint.load: {path} is missing, incomplete or damaged; "
            "another checkpoint of the run may be whole (checkpoint.newest finds it)"
        )
    tensors = load_file(path / "state.safetensors")
    state: dict[str, Any] = _unpack(json.loads((path / "state.json").read_text()), tensors)
    return state


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _is_whole(path: Path) -> bool:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        return manifest["format"] <= _FORMAT and all(
            _describe(path / name) == found for name, found in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pack(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """JSON of ``value``; its tensors go to ``tensors`` and leave their names behind."""
    if isinstance(value, Tensor):
        # A copy: safetensors refuses views of one storage, which tied weights are.
        tensors[where] = value.detach().to("cpu", copy=True).contiguous()
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
