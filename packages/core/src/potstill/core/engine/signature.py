"""What makes a run this run: descriptions and cheap digests, compared before it is continued."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import types
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core.vocabulary.teacher import Frozen

if TYPE_CHECKING:
    from potstill.core.engine.batches import Shard
    from potstill.core.engine.plan import Plan, Stage, Turn
    from potstill.core.engine.player import Defaults
    from potstill.core.engine.source import Source
    from potstill.core.vocabulary.distiller import Distiller
    from potstill.core.vocabulary.objective import Objective

__all__ = ["describe", "differences", "signature", "sketch"]

_SAMPLE = 256  # elements of a tensor that are looked at
_DEPTH = 4  # levels of objects inside objects
_STEPS = (0, 1, 10, 100, 1_000, 10_000)  # where schedules of weights are compared
_SAME_RESULT = ("fused", "foreach", "capturable", "differentiable")  # options of speed only


def sketch(*values: Any) -> str:
    """Digest of types, shapes and a sample of each tensor or array: cheap, whatever the size.

    Two values with the same sketch need not be equal: `potstill.core.fingerprint` reads every byte.

    Example:
        >>> sketch(torch.zeros(10**6)) == sketch(torch.zeros(10**6))
        True
        >>> sketch(torch.zeros(3)) == sketch(torch.ones(3))
        False
    """
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        _feed(digest, value)
    return digest.hexdigest()


def describe(value: Any, depth: int = _DEPTH) -> str:
    """One line that is the same in every process: names, options and shapes, and no addresses.

    A function is its qualified name (and a digest of its code where that name is not unique), a
    module its class, its plain attributes and its parts, a tensor its `sketch`.

    Example:
        >>> import torch.nn.functional as F
        >>> describe(partial(F.cross_entropy, label_smoothing=0.1))
        'torch.nn.functional.cross_entropy(label_smoothing=0.1)'
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__}{list(value.shape)}:{sketch(value)}"
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, partial):
        options = {k: v for k, v in value.keywords.items() if k not in _SAME_RESULT}
        words = [describe(v, depth - 1) for v in value.args]
        words += [f"{k}={describe(v, depth - 1)}" for k, v in sorted(options.items())]
        return f"{describe(value.func, depth)}({', '.join(words)})"
    if isinstance(value, types.MethodType):
        return f"{describe(value.__self__, depth - 1)}.{value.__name__}"
    if isinstance(value, types.FunctionType):
        return _describe_function(value, depth)
    if hasattr(value, "__qualname__"):  # classes and builtin functions
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        pairs = (f"{k}: {describe(v, depth - 1)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return f"[{', '.join(describe(v, depth - 1) for v in value)}]"
    return _describe_object(value, depth)


def _describe_function(function: types.FunctionType, depth: int) -> str:
    name = f"{function.__module__}.{function.__qualname__}"
    if "<" not in name:
        return name
    code = function.__code__
    constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    content = repr((code.co_code, constants, code.co_names)).encode()
    digest = hashlib.blake2b(content, digest_size=4).hexdigest()
    cells = [_content(cell) for cell in function.__closure__ or ()]
    inside = ", ".join(describe(cell, depth - 1) for cell in cells)
    return f"{name}:{digest}({inside})"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _describe_object(value: Any, depth: int) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if dataclasses.is_dataclass(value):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "_fields"):
        parts = value._asdict()
    elif isinstance(value, nn.Module):
        parts = _public(vars(value)) | dict(value.named_children())
        parts |= {n: list(p.shape) for n, p in value.named_parameters(recurse=False)}
        parts.pop("training", None)
    else:
        parts = _public(getattr(value, "__dict__", {}))
    inside = ", ".join(f"{k}={describe(v, depth - 1)}" for k, v in parts.items())
    return re.sub(r" at 0x[0-9a-f]+", "", f"{name}({inside})")


def _public(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in attributes.items() if not k.startswith("_")}


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)};".encode())
        for part in _strided(value.detach()):
            _feed_flat(digest, part)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype.str} {value.shape};".encode())
        flat = value.reshape(-1)
        digest.update(np.ascontiguousarray(flat[_places(flat.size)]).tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(f"{key}:".encode())
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} items;".encode())
        for item in (
            value if len(value) <= _SAMPLE else [value[int(i)] for i in _places(len(value))]
        ):
            _feed(digest, item)
    elif hasattr(value, "to_dict"):  # a graph of PyG
        _feed(digest, value.to_dict())
    elif hasattr(value, "__array__"):  # an image of PIL
        _feed(digest, np.asarray(value))
    else:
        digest.update(describe(value, depth=2).encode())


def _strided(value: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor is made of."""
    if value.layout == torch.strided:
        return [value.to_local() if hasattr(value, "to_local") else value]
    if value.layout == torch.sparse_csr:
        return [value.values(), value.crow_indices(), value.col_indices()]
    value = value.to_sparse_coo()
    return [value._indices(), value._values()]


def _feed_flat(digest: Any, value: Tensor) -> None:
    if value.device.type == "meta" or not value.numel():
        return
    flat = value.reshape(-1) if value.is_contiguous() else value.flatten()
    some = flat[torch.from_numpy(_places(flat.numel())).to(flat.device)].cpu().contiguous()
    digest.update(some.view(torch.uint8).numpy().tobytes())


def _places(size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices of a sample: all of a small array, else evenly spaced ones and both ends."""
    return np.unique(np.linspace(0, max(size - 1, 0), min(size, _SAMPLE)).astype(np.int64))


def signature(
    distiller: Distiller,
    source: Source,
    plan: Plan,
    defaults: Defaults,
    shard: Shard,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What must be the same for a run to be continued, by name.

    The budget is not part of it, nor are device and processes: a run may be continued for longer
    and elsewhere, with the same global batch.
    """
    batch = getattr(source, "batch_size", None)
    found: dict[str, Any] = {
        "seed": shard.seed,
        "data": source.fingerprint(),
        "global batch" if batch else "number of processes": (batch or 1) * shard.world,
        **options,
        "clip": defaults.clip,
        "student": [
            [n.replace("_orig_mod.", ""), list(p.shape)]
            for n, p in distiller.student.named_parameters()
        ],
        "number of stages": len(plan.stages),
    }
    teachers = [m.model for m in distiller.modules() if isinstance(m, Frozen)]
    for number, teacher in enumerate(teachers):
        where = f"teacher {number}" if len(teachers) > 1 else "teacher"
        found[where] = f"{type(teacher).__qualname__} {sketch(teacher.state_dict())}"
    for number, stage in enumerate(plan.stages):
        where = f" of stage {number}" if len(plan.stages) > 1 else ""
        if stage.turns or len(plan.stages) > 1:
            found[f"length{where}"] = stage.share or stage.steps
        found[f"trainable{where}"] = describe(stage.trainable)
        for turn in stage.turns or (None,):
            of = f"{where}, turn {turn.name!r}" if turn else where
            if turn:
                found[f"turn{of}"] = [describe(turn.trainable), turn.times, turn.every, turn.clip]
            found |= _rates(stage, turn, defaults, of)
            found |= _terms((turn and turn.objective) or stage.objective or defaults.objective, of)
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What two signatures differ in, with both values: ``{"seed": "seed (0, now 1)"}``."""
    return {
        name: f"{name} ({_short(before.get(name, 'none'))}, now {_short(now.get(name, 'none'))})"
        for name in dict.fromkeys([*now, *before])
        if before.get(name) != now.get(name)
    }


def _rates(stage: Stage, turn: Turn | None, defaults: Defaults, of: str) -> dict[str, Any]:
    schedule = (turn and turn.schedule) or stage.schedule or defaults.schedule
    places = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0)
    return {
        f"optimizer{of}": describe((turn and turn.optimizer) or defaults.optimizer),
        f"lr{of}": (turn and turn.lr) or stage.lr or defaults.lr,
        f"schedule{of}": [schedule(place) for place in places] if schedule else [1.0],
    }


def _terms(objective: Objective, of: str) -> dict[str, Any]:
    found: dict[str, Any] = {f"terms{of}": list(objective.names)}
    for name, (weight, criterion) in objective.items():
        values = [float(weight(step)) for step in _STEPS] if callable(weight) else [float(weight)]
        found[f"weight of the term {name!r}{of}"] = values
        found[f"criterion of the term {name!r}{of}"] = describe(criterion)
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}..."
