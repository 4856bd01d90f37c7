"""Criteria at 64 x 100,000 and RKD at N = 256: time against naive forms, memory beyond the inputs.

Baselines are the formulas written naively (`tests/core/criteria/naive.py`), which is how the public
libraries compute them, and torchdistill itself where it is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.core import criteria as c
from potstill.core import peak_memory
from potstill.core.measure.bench import (
    Figure,
    Pair,
    Skip,
    Target,
    at_least,
    at_most,
    benchmark,
    close,
)

_FILE = Path(__file__).parents[2] / "tests" / "core" / "criteria" / "naive.py"
_SPEC = importlib.util.spec_from_file_location("naive_criteria", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
naive = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(naive)

N, C = 64, 100_000
HARD = "issue 3: Must hold"
AIM = "issue 3: aim"

OURS: dict[str, Callable[..., Tensor]] = {
    "kd": c.kd,
    "soft_ce": c.soft_ce,
    "logit_mse": c.logit_mse,
    "logit_std": c.logit_std,
    "wsld": c.wsld,
    "mft": c.mft,
    "dkd": c.dkd,
    "nkd": c.nkd,
    "dist": c.dist,
    "gjsd": c.gjsd,
    "reverse_kl": c.reverse_kl,
    "skew_fkl": c.skew_fkl,
    "skew_rkl": c.skew_rkl,
    "tvd": c.tvd,
    "bdkd": c.bdkd,
    "alpha_beta": c.alpha_beta,
    "renyi": c.renyi,
    "amari": c.amari,
    "taid": partial(c.taid, tau=0.4),
    "pld": c.pld,
    "topk_kl": partial(c.topk_kl, k=10),
    "rkd_d": c.rkd_d,
    "rkd_a": c.rkd_a,
}
FRACTIONS = {  # of the baseline's time, at most
    "kd": (0.45, HARD),
    "dkd": (0.3, AIM),
    "gjsd": (0.3, AIM),
    "nkd": (0.15, AIM),
    "dist": (0.4, AIM),
    "pld": (0.5, AIM),
}
MEBIBYTES = {"dist": 60}  # beyond the inputs, at most; 40 for all others


def logits(quick: bool) -> tuple[Tensor, Tensor, Tensor]:
    classes = C // 50 if quick else C
    z_s, z_t = 3 * torch.randn(2, N, classes)
    return z_s, z_t, torch.randint(0, classes, (N,))


def features() -> tuple[Tensor, Tensor]:
    return torch.randn(256, 256), torch.randn(256, 512)


def step(criterion: Callable[..., Tensor], x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient with respect to the student's tensor."""
    x = x.detach().requires_grad_()
    value = criterion(x, *others)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def measured(name: str, *inputs: Tensor) -> float:
    """One step, for `peak_memory`, which finds functions by name."""
    with torch.enable_grad():
        return float(step(OURS[name], *inputs)[0])


def inputs_and_warm_up(name: str, quick: bool) -> tuple[Any, ...]:
    """Inputs, after a small call that loads what the first call loads."""
    big = features() if name.startswith("rkd") else logits(quick)
    small = [x[:4, :64] if x.ndim == 2 else x[:4] % 64 for x in big]
    with torch.enable_grad():
        step(OURS[name], *small)
    return name, *big


def extra_memory(name: str, quick: bool) -> dict[str, Figure]:
    peak = peak_memory(measured, name, quick, prepare=inputs_and_warm_up)
    return {"memory": Figure(peak.extra / 2**20, "MiB beyond inputs")}


def same(ours: tuple[Tensor, Tensor], baseline: tuple[Tensor, Tensor]) -> None:
    """Values agree, and gradients by the size of the largest entry."""
    close(rtol=1e-3, atol=1e-4)(ours[0], baseline[0])
    scale = float(baseline[1].nan_to_num().abs().max())
    close(rtol=1e-2, atol=1e-3 * scale)(ours[1], baseline[1].nan_to_num())


def race(name: str, quick: bool) -> Pair:
    inputs = logits(quick)
    return Pair(
        ours=partial(step, OURS[name], *inputs),
        baseline=partial(step, getattr(naive, name), *inputs),
        check=same,
        work=N,
        unit="rows/s",
        bytes=3 * 4 * inputs[0].numel(),  # read both logits, write the gradient
        figures=extra_memory(name, quick),
    )


def register(name: str) -> None:
    fraction, source = FRACTIONS.get(name, (1.05, HARD))
    targets: Mapping[str, Target] = {
        "ratio": at_least(1 / fraction, f"{source}: at most {fraction}x the time"),
        "memory": at_most(MEBIBYTES.get(name, 40), HARD),
    }

    def criterion(quick: bool) -> Pair:
        return race(name, quick)

    criterion.__doc__ = f"{name}: value and gradient, 64 x 100,000, against the naive form."
    benchmark(domain="core", name=f"criteria-{name.replace('_', '-')}", targets=targets)(criterion)


for _name in OURS:
    if not _name.startswith("rkd"):
        register(_name)


@benchmark(targets={"ratio": at_least(1 / 0.45, f"{HARD}: at most 0.45x the time")})
def criteria_kd_torchdistill(quick: bool) -> Pair:
    """kd against torchdistill's KDLoss, 64 x 100,000.

    At ``alpha = 0`` that leaves out the cross-entropy, and ``T ** 2`` with it.
    """
    if importlib.util.find_spec("torchdistill") is None:
        raise Skip("needs torchdistill: hatch run peers:bench core criteria-kd-torchdistill")
    from torchdistill.losses.mid_level import KDLoss

    z_s, z_t, y = logits(quick)
    at = ("module", "output")
    peer = KDLoss(*at, *at, temperature=4.0, alpha=0.0, reduction="batchmean")

    def theirs(z: Tensor) -> Tensor:
        return peer({"module": {"output": z}}, {"module": {"output": z_t}}, y)

    def ours(z: Tensor) -> Tensor:
        return c.kd(z, z_t, T=4.0, t_squared=False)

    return Pair(partial(step, ours, z_s), partial(step, theirs, z_s), same, work=N, unit="rows/s")


def rkd(f_s: Tensor, f_t: Tensor) -> Tensor:
    return c.rkd_d(f_s, f_t) + 2 * c.rkd_a(f_s, f_t)


OURS["rkd"] = rkd


@benchmark(
    targets={
        "ratio": at_least(1 / 0.65, f"{HARD}: at most 0.65x the time"),
        "memory": at_most(16, HARD),
    }
)
def criteria_rkd(quick: bool) -> Pair:
    """RKD, distance and angle, N = 256, widths 256 and 512, against the naive form."""
    f = features()
    return Pair(
        partial(step, rkd, *f),
        partial(step, naive.rkd, *f),
        same,
        work=256,
        unit="items/s",
        figures=extra_memory("rkd", quick),
    )


@benchmark(targets={"ratio": at_least(1 / 0.05, f"{HARD}: distance alone at most 0.05x the time")})
def criteria_rkd_distance(quick: bool) -> Pair:
    """RKD with the distance alone; the usual codes compute the angles all the same, at weight 0."""
    f = features()
    return Pair(
        partial(step, c.rkd_d, *f),
        partial(step, partial(naive.rkd, angle=0.0), *f),
        same,
        work=256,
        unit="items/s",
        figures=extra_memory("rkd_d", quick),
    )
