"""Two folders of results: where they differ, tensor by tensor and field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

__all__ = ["differences", "distance", "unsaved"]

_MEANS = ("checkpoints/*", "*/checkpoints/*")  # how many there are depends on the clock


def differences(one: Path, other: Path, fields: Sequence[str], files: Sequence[str]) -> list[str]:
    """Say what of ``other`` is not as in ``one``; nothing where all of it is.

    Safetensors are compared bit by bit, JSON by its values, everything else as bytes.

    Args:
        one: Folder that is right.
        other: Folder to compare with it.
        fields: Patterns of JSON fields that may differ.
        files: Patterns of files, below the folders, that are not compared.
    """
    left, right = (_files(folder, files) for folder in (one, other))
    found = [f"{name} is missing" for name in sorted(left - right)]
    found += [f"{name} is left over" for name in sorted(right - left)]
    for name in sorted(left & right):
        found += [f"{name}: {text}" for text in _compare(one / name, other / name, fields)]
    return found


def distance(one: Path, other: Path) -> float:
    """Largest difference between the tensors of equal name; infinite where there are none."""
    from safetensors.torch import load_file

    far = []
    for name in sorted(_files(one, ()) & _files(other, ())):
        if name.endswith(".safetensors"):
            left, right = load_file(one / name), load_file(other / name)
            far += [_apart(left[key], right[key]) for key in left.keys() & right.keys()]
    return max(far, default=float("inf"))


def unsaved(folder: Path) -> int:
    """Steps in the histories below ``folder`` that are in no checkpoint."""
    lost = 0
    for history in folder.rglob("history.jsonl"):
        steps = (path.name.removeprefix("step-") for path in history.parent.glob("checkpoints/*"))
        saved = max((int(step) for step in steps if step.isdigit()), default=0)
        lost += max(history.read_bytes().count(b"\n") - saved, 0)
    return lost


def _files(folder: Path, left_out: Sequence[str]) -> set[str]:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    patterns = (*_MEANS, *left_out)
    return {name for name in names if not any(fnmatchcase(name, p) for p in patterns)}


def _compare(one: Path, other: Path, fields: Sequence[str]) -> Iterator[str]:
    if one.read_bytes() == other.read_bytes():
        return
    if one.suffix == ".safetensors":
        yield from _tensors(one, other)
    elif one.suffix in (".json", ".jsonl"):
        left, right = (list(_values(path, fields)) for path in (one, other))
        if len(left) != len(right):
            yield f"{len(left)} values, now {len(right)}"
        unequal = [(a, b) for a, b in zip(left, right, strict=False) if a != b]
        if unequal:
            (where, was), (_, now) = unequal[0]
            yield f"{len(unequal)} values differ, first {where} ({was}, now {now})"
    else:
        yield "other bytes"


def _values(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each value with the way to it; NaN equals NaN as text."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    for number, line in enumerate(lines, start=1):
        where = f"line {number}" if len(lines) > 1 else "value"
        yield from _leaves(where, json.loads(line), fields)


def _leaves(where: str, value: Any, fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    if not isinstance(value, list | dict):
        yield where, repr(value)
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if not any(fnmatchcase(str(name), field) for field in fields):
            yield from _leaves(f"{where} {name}", inner, fields)


def _tensors(one: Path, other: Path) -> Iterator[str]:
    import torch
    from safetensors.torch import load_file

    left, right = load_file(one), load_file(other)
    if left.keys() != right.keys():
        yield f"tensors {', '.join(sorted(left.keys() ^ right.keys()))} are in one of them only"
    far: dict[str, float] = {}
    for name in sorted(left.keys() & right.keys()):
        a, b = left[name].contiguous(), right[name].contiguous()
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            yield f"{name} is {a.dtype} {[*a.shape]}, now {b.dtype} {[*b.shape]}"
        elif not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
            far[name] = _apart(a, b)
    if far:
        worst = max(far, key=lambda name: far[name])
        yield f"{len(far)} of {len(left)} tensors differ, {worst} by {far[worst]:.3g}"


def _apart(one: Any, other: Any) -> float:
    far = (one.double() - other.double()).abs().nan_to_num(float("inf"))
    return float(far.max()) if far.numel() else 0.0
