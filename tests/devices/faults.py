"""Faults planted where a GPU would show them: does the dry run of the proof find each?

python -m tests.devices.faults

Prints as JSON what was found; without a fault nothing may be.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from unittest import mock

import torch

os.environ["TRITON_INTERPRET"] = "1"

from benchmarks.cuda import equality, kernels, place  # noqa: F401
from potstill.core.measure.bench import registered, run

PACKAGES = Path(__file__).parents[2] / "packages"
LEARNERS = ("potstill.acm.backends.triton", "kernel-acm-fp32")
HASH = ("potstill.nerf.backends.triton", "kernel-hash-triton")
AT = "at = points[:, None] * levels{} + level * F + f"
KERNEL = {
    "nothing in the kernels of learners": (*LEARNERS, "", ""),
    "nothing in the kernels of the hash grid": (*HASH, "", ""),
    "a wrong stride": (*HASH, AT.format(" * F"), AT.format("")),
    "a missing mask": (
        *LEARNERS, "tl.where(h[None, :] < wanted[:, None], _activate(z, CODE), 0.0)",
        "_activate(z, CODE)",
    ),
}  # fmt: skip


def kernel_fails(module: str, race: str, before: str, after: str, folder: str) -> bool:
    """Whether the race of a kernel refuses its module with that change."""
    source = PACKAGES / module.split(".")[1] / "src" / (module.replace(".", "/") + ".py")
    text = source.read_text(encoding="utf-8")
    assert before in text, f"{source.name} has no {before!r}; plant the fault elsewhere"
    path = Path(folder, f"planted_{len(os.listdir(folder))}.py")
    path.write_text(text.replace(before, after) if before else text, encoding="utf-8")
    spec = spec_from_file_location(module, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[module] = planted = module_from_spec(spec)
    spec.loader.exec_module(planted)
    (entry,) = (entry for entry in registered("cuda") if entry.name == race)
    return run(replace(entry, device="cpu"), quick=True).status == "failed"


def half_fails(scale: Callable[[Any], None] | None = None) -> bool:
    """Whether fp16 of small gradients misses a target, with another way to scale them."""
    equality.rows_of.cache_clear()
    with mock.patch.object(place, "_scale", scale) if scale else nullcontext():
        figures = equality.half(["small"], quick=True)
    first, fall = figures["small fp16"].value, figures["small fp16 fall"].value
    return not (first <= equality.HALF and fall <= equality.FALL)


def unscaled(engine: Any) -> None:
    """An engine in float16 without a loss scaler."""
    engine.autocast = lambda: torch.autocast("cpu", torch.float16)


def main() -> None:
    """Plant one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: kernel_fails(*change, folder) for name, change in KERNEL.items()}
    found["nothing in fp16"] = half_fails()
    found["an unscaled fp16 loss"] = half_fails(unscaled)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
