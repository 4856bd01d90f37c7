"""Wall-clock of gated layers and models against timm's dense ones, interleaved.

    python -m benchmarks acm --check

Choices are random with the mean budget named; they are fixed before timing. Layers are timed
without the gate and, as the figure ``with_gate``, with it; whole models always include their gates.
The figure ``products`` is the floor: the matrix products alone, at the same numbers of tokens.

How long the dense side takes depends on malloc too: hidden units of some MB are often given back to
the system after each call, and their pages zeroed in the next. With the environment
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000`` they never are, for either side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor

from potstill.acm import Learners, acmize, acms, backends, costs, forced
from potstill.acm.analysis import random_choices, run_gate
from potstill.core import count_macs, latency
from potstill.core.measure.bench import Figure, Pair, at_least, at_most, benchmark

LEARNERS = 4


def inference(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return function()

    return call


def block(name: str) -> tuple[Any, Any]:
    """A dense MLP of the model called ``name``, and the adaptive one made of it."""
    dense = timm.create_model(name, depth=1).eval()
    adaptive = acmize(dense, learners=LEARNERS).eval()
    return dense.blocks[0].mlp, adaptive.blocks[0].mlp


def products(x: Tensor, k: Tensor, learners: Learners) -> Callable[[], None]:
    """Multiply only: learner n with as many tokens as want it, into memory that is there."""
    parts = [learners.only(n) for n in range(1, learners.total + 1)]
    wanted = [int((k >= n).sum()) for n in range(1, learners.total + 1)]
    hidden = [x.new_empty(rows, len(part.up)) for rows, part in zip(wanted, parts, strict=True)]
    y = torch.zeros_like(x)

    def call() -> None:
        for rows, part, buffer in zip(wanted, parts, hidden, strict=True):
            torch.mm(x[:rows], part.up.t(), out=buffer)
            y[:rows].addmm_(buffer, part.down)

    return call


def layer(batch: int, budget: float) -> Pair:
    """One MLP of ViT-S; the sides compute different things unless the budget is 1."""
    dense, acm = block("vit_small_patch16_224")
    x = torch.randn(batch * 197, 384)
    k = random_choices(len(x), LEARNERS, budget) if budget < 1 else torch.full((len(x),), LEARNERS)
    with torch.inference_mode():
        learners = acm.learners
        reference = backends.dense_masked(x, k, learners)
        gate = latency(acm.gate.pick, x, blocks=9).median
        ours = latency(backends.run, x, k, learners, blocks=9).median
        floor = latency(products(x, k, learners), blocks=9).median
        whole = latency(dense, x, blocks=9).median

    def check(mine: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
        if budget == 1:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)

    cost = acm.costs
    return Pair(
        ours=inference(lambda: backends.run(x, k, learners)),
        baseline=inference(lambda: dense(x)),
        check=check,
        work=len(x),
        unit="tokens/s",
        flops=2.0 * float(torch.tensor(cost)[k].sum()),
        figures={
            "budget": Figure(float(k.float().mean()) / LEARNERS),
            "MMACs": Figure(float(torch.tensor(cost)[k].sum()) / 1e6),
            "dense_MMACs": Figure(cost[-1] * len(x) / 1e6),
            "with_gate": Figure((ours + gate) / whole, "x dense", timed=True),
            "products": Figure(floor / whole, "x dense", timed=True),
        },
    )


def model(batch: int, budget: float) -> Pair:
    """A whole ViT-S with adaptive MLPs, gates included."""
    dense = timm.create_model("vit_small_patch16_224", num_classes=1000).eval()
    adaptive = acmize(dense, learners=LEARNERS).eval()
    images = torch.randn(batch, 3, 224, 224)
    choices = {
        name: random_choices(batch * 197, LEARNERS, budget, seed).view(batch, 197)
        for seed, name in enumerate(acms(adaptive))
    }

    for acm in acms(adaptive).values():  # the gates run, and are then overruled
        acm.register_forward_pre_hook(run_gate)

    def ours() -> Tensor:
        with forced(adaptive, choices):
            return adaptive(images)

    def check(mine: Tensor, theirs: Tensor) -> None:
        assert mine.shape == theirs.shape
        assert bool(mine.isfinite().all())

    count = costs(adaptive, images[:1])
    mean = sum(float(c.float().mean()) for c in choices.values()) / len(choices) / LEARNERS
    return Pair(
        ours=inference(ours),
        baseline=inference(lambda: dense(images)),
        check=check,
        work=batch,
        unit="images/s",
        figures={
            "budget": Figure(mean),
            "MMACs": Figure(batch * count.at(mean) / 1e6),
            "dense_MMACs": Figure(batch * count_macs(dense, images[:1]) / 1e6),
        },
    )


LAYERS = {(8, 0.5): 0.62, (64, 0.5): 0.45, (8, 0.25): 0.36, (64, 0.25): 0.26, (8, 1.0): 1.03,
          (64, 1.0): 1.03}  # fmt: skip
MODELS = {(8, 0.5): 0.80, (32, 0.5): 0.66}


def register(kind: Callable[[int, float], Pair], what: str, limits: dict[Any, float]) -> None:
    """One benchmark a shape; "at most r of the dense time" is a ratio of at least 1 / r."""
    for (batch, budget), limit in limits.items():
        function = partial(kind, batch, budget)
        function.__doc__ = f"{what}, batch {batch}, budget {budget:g}: at most {limit:g} of dense."  # type: ignore[attr-defined]
        target = at_least(1 / limit, f"issue 7: {what}, at most {limit:g}x")
        benchmark(
            domain="acm", name=f"{kind.__name__}-{batch}-{100 * budget:.0f}", targets=target,
            threads=2,
        )(function)  # fmt: skip


@benchmark(device="cuda", targets={
    "over_linear": at_most(0.15, "issue 7: ViT-B layer, bf16, batch 128"),
})  # fmt: skip
def layer_cuda() -> dict[str, Figure]:
    """One MLP of ViT-B on a GPU, bf16, batch 128: time over linear in the budget plus 5 %."""
    dense, acm = block("vit_base_patch16_224")
    dense, acm = dense.to("cuda", torch.bfloat16), acm.to("cuda", torch.bfloat16)
    x = torch.randn(128 * 197, 768, device="cuda", dtype=torch.bfloat16)
    figures, over = {}, []
    with torch.inference_mode():
        whole = latency(dense, x).median
        for budget in (0.25, 0.5, 0.75, 1.0):
            k = torch.full((len(x),), LEARNERS)
            k = (random_choices(len(x), LEARNERS, budget) if budget < 1 else k).cuda()
            time = latency(lambda k=k: (acm.gate.pick(x), backends.run(x, k, acm.learners))).median
            share = float(k.float().mean()) / LEARNERS
            over.append(time / ((share + 0.05) * whole) - 1)
            figures[f"ratio_{100 * budget:.0f}"] = Figure(time / whole, "x dense", timed=True)
    return {**figures, "over_linear": Figure(max(over), timed=True)}


register(layer, "ViT-S layer", LAYERS)
register(model, "whole ViT-S, MLP only", MODELS)
