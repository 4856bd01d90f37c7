"""The distillers that ship, on a GPU and on the CPU: the same loss at every step.

Both draw the same random numbers. In float32, without TF32, terms agree to 1e-3 over all steps, as
sums are added in another order and a kink amplifies that. In half precision the first loss agrees
to 5 % (a term need not: a gate may choose otherwise), and the loss falls as far. fp16 goes through
the loss scaler; `small` has gradients that are zero in float16 without it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.cuda import place
from potstill.core import Distiller, Objective, fit
from potstill.core.measure.bench import Figure, at_most, benchmark
from tests.golden import programs

SOURCE = "issue 17: a GPU against the CPU"
FULL, HALF, FALL = 1e-3, 0.05, 0.1
"""Largest relative gap of a term to the CPU's, in float32 and at first in half precision; of the
fall of the loss."""

MAIN = {
    "core": "core_unlabeled", "graph": "graph_ff_g2m", "nerf": "nerf_vm", "mae": "mae_align",
    "sr": "sr_output", "acm": "acm_finetune", "condense": "condense_learner",
    "search": "search_elastic", "quant": "quant_distill", "flow": "flow_dmd2",
    "audit": "audit_arm",
}  # fmt: skip
"""The program of a domain that is tried in half precision and compiled."""

Rows = list[dict[str, float]]


class _Regression(Distiller):
    def forward(self, batch: Any, step: int) -> Any:
        return self.objective(step, task=(self.student(batch[0]), batch[1]))


def small() -> Rows:
    """A regression whose gradients, about 1e-9, are zero in float16; Adam makes steps of them."""
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    loss = Objective(task=(1e-6, lambda a, b: ((a - b).abs() ** 2).mean()))
    student = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    adam = partial(torch.optim.Adam, eps=1e-20)
    return fit(_Regression(student, loss), [(x, x.sum(1, keepdim=True) / 8)], steps=20, lr=0.03,
               optimizer=adam, progress=False)  # fmt: skip


@cache  # in a dry run both sides are the CPU
def rows_of(
    name: str,
    device: str,
    precision: str = "fp32",
    compiled: bool | None = None,
    own: bool = False,
) -> Rows:
    """The terms of every step of a program, in float32 or the program's own dtype.

    Whether ``compiled`` or not, both draw on the device: Dynamo leaves code alone that another
    dispatcher watches.
    """
    draws = place.DrawnOnTheCPU() if compiled is None else place.drawn_alike()
    with place.engines(device, precision, bool(compiled)), draws:
        if name == "small":
            return list(small())
        known = programs.PROGRAMS[name]
        single = known if own else known._replace(dtype=torch.float32)
        with mock.patch.dict(programs.PROGRAMS, {name: single}):
            return programs.curve(name)


def gap(found: Rows, expected: Rows, keys: Iterable[str] = ()) -> float:
    """Largest relative difference of a term, infinite where one is not finite."""
    worst = 0.0
    for row, other in zip(found, expected, strict=True):
        for key in keys or row.keys() - {"grad_norm", "step", "seconds", "lr", "score"}:
            scale = max(abs(other[key]), 1e-3)
            apart = abs(row[key] - other[key]) / scale
            worst = max(worst, apart if math.isfinite(apart) else math.inf)
    return worst


def fallen(rows: Rows) -> float:
    """How far the loss fell: the mean of its last quarter over that of its first."""
    part = max(len(rows) // 4, 1)
    first, last = (
        sum(r[key] for r in some for key in losses(r)) for some in (rows[:part], rows[-part:])
    )
    return last / first


def losses(row: dict[str, float]) -> list[str]:
    """The columns of the loss: one, or that of each player."""
    return [key for key in row if key.rpartition("/")[2] == "loss"]


def full(names: list[str], quick: bool) -> dict[str, Figure]:
    """float32 (some programs float64), all terms of all steps:"""
    with steps(quick):
        pairs = {
            n: (rows_of(n, place.DEVICE, own=True), rows_of(n, "cpu", own=True)) for n in names
        }
    return {name: Figure(gap(*pair), "relative") for name, pair in pairs.items()}


def half(names: list[str], quick: bool) -> dict[str, Figure]:
    """The first step in bf16 and fp16, and how far the loss fell, against float32 on the CPU:"""
    with steps(quick):
        return halves(names)


def halves(names: list[str]) -> dict[str, Figure]:
    figures = {}
    for name in names:
        expected = rows_of(name, "cpu")
        for precision in ("bf16", "fp16"):
            found = rows_of(name, place.DEVICE, precision)
            apart = abs(fallen(found) - fallen(expected))
            figures[f"{name} {precision}"] = Figure(
                gap(found[:1], expected[:1], losses(expected[0])), "relative"
            )
            figures[f"{name} {precision} fall"] = Figure(apart, "of the loss")
    return figures


def compiled(names: list[str], quick: bool) -> dict[str, Figure]:
    """`torch.compile` of the student, in float32, against the same without:"""
    with steps(quick):
        before = place.graphs()
        pairs = {
            n: [rows_of(n, place.DEVICE, compiled=way) for way in (True, False)] for n in names
        }
        assert place.graphs() > before, "nothing was compiled"
    return {name: Figure(gap(*pair), "relative") for name, pair in pairs.items()}


@contextmanager
def steps(quick: bool) -> Iterator[None]:
    """Few steps in a dry run."""
    count = 5 if quick else programs.STEPS
    recipe = replace(programs.RECIPE, epochs=count)
    with (
        mock.patch.multiple(programs, STEPS=count, RECIPE=recipe),
        mock.patch.dict(programs.QUIET, steps=count),
    ):
        yield


def register(kind: Callable[..., Any], domain: str, names: list[str]) -> None:
    function = partial(kind, names)
    function.__doc__ = f"{kind.__doc__ or ''} {domain}."  # type: ignore[attr-defined]
    if kind is half:
        keys = {f"{n} {p}{fall}": HALF if not fall else FALL
                for n in names for p in ("bf16", "fp16") for fall in ("", " fall")}  # fmt: skip
    else:
        keys = dict.fromkeys(names, FULL)
    targets = {key: at_most(limit, SOURCE) for key, limit in keys.items()}
    name = f"equal-{kind.__name__}-{domain}"
    benchmark(domain="cuda", name=name, device="cuda", targets=targets)(function)


for kind in (full, half, compiled):
    for domain, main in MAIN.items():
        if kind is compiled and domain == "nerf":  # fields are asked by their methods, not called
            continue
        every = [name for name in programs.PROGRAMS if name.startswith(f"{domain}_")]
        chosen = every if kind is full and place.DEVICE == "cuda" else [main]
        register(kind, domain, [*chosen, *(["small"] if domain == "core" else [])])
