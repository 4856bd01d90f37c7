"""Latency against budget, on this machine: does a saved multiply-add save time?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from potstill.acm import backends
from potstill.acm.analysis.turns import in_turns, ratio
from potstill.acm.layers.budget import check_budget, costs, evaluation
from potstill.acm.layers.module import ACM, forced, record_gates, require_acms, restored

__all__ = ["SweepRow", "random_choices", "run_gate", "sweep_layer", "sweep_model"]

SweepRow = dict[str, float]
"""``budget``, ``ms``, ``dense ms``, ``ratio``, ``linear`` (the least ratio) and ``MMACs``."""


def random_choices(
    tokens: int, learners: int, budget: float, seed: int = 0, least: int = 0
) -> Tensor:
    """Random choices of ``least`` to N whose mean is ``budget * N``, to a few parts in ``tokens``.

    Of all such distributions the one of largest entropy: an exponentially tilted uniform. Its
    shares are drawn from even strata, so that chance does not make a budget cheaper than its name.

    Raises:
        ConfigError: The budget is not in (0, 1], or below ``least / N``.

    Example:
        >>> k = random_choices(10_000, learners=4, budget=0.5)
        >>> abs(float(k.float().mean()) / 4 - 0.5) < 1e-3
        True
    """
    check_budget("random_choices", budget, least / learners)
    steps = torch.arange(least, learners + 1.0)
    low, high = -60.0, 60.0
    for _ in range(80):
        tilt = (low + high) / 2
        mean = float((torch.softmax(tilt * steps, 0) * steps).sum()) / learners
        low, high = (tilt, high) if mean < budget else (low, tilt)
    rng = torch.Generator().manual_seed(seed)
    shares = torch.softmax(high * steps, 0).cumsum(0)[:-1]
    even = (torch.randperm(tokens, generator=rng) + torch.rand(tokens, generator=rng)) / tokens
    return torch.bucketize(even, shares, right=True) + least


def sweep_layer(
    acm: ACM,
    dense: nn.Module,
    tokens: int,
    budgets: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    *,
    backend: str = "auto",
    rounds: int = 7,
) -> list[SweepRow]:
    """Time one adaptive module at random choices, gate included, in turns with its dense one.

    Args:
        acm: The module.
        dense: Module that it replaces.
        tokens: Tokens of a call.
        budgets: Mean budgets.
        backend: Name of a backend; see `potstill.acm.backends`.
        rounds: Turns; medians count.

    Raises:
        BackendError: The backend cannot run here.
        ConfigError: A budget out of range.
    """
    backends.BACKENDS.resolve(backend, acm.up.device)
    x = torch.randn(1, tokens, acm.inputs, device=acm.up.device, dtype=acm.up.dtype)
    with restored([acm], "backend"):
        acm.backend = backend
        return sweep_model(acm, dense, x, budgets, rounds=rounds)


def sweep_model(
    model: nn.Module,
    dense: nn.Module,
    images: Tensor,
    budgets: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    *,
    rounds: int = 5,
) -> list[SweepRow]:
    """Time a whole adaptive model at random choices, gates included, in turns with the dense one.

    Arguments as of `sweep_layer`; the choices replace the gates' after these have run.

    Raises:
        ConfigError: A budget out of range, or nothing adaptive.
    """
    modules = require_acms(model, "sweep_model")
    with evaluation(model), evaluation(dense), torch.inference_mode():
        with record_gates(model) as readings:
            model(images)
        chosen = {
            b: {
                name: random_choices(k.choices.numel(), modules[name].count, b, i, k.least)
                .view_as(k.choices)
                .to(images.device)
                for i, (name, k) in enumerate(readings.items())
            }
            for b in budgets
        }
        hooks = [acm.register_forward_pre_hook(run_gate) for acm in modules.values()]
        calls = {0.0: partial(dense, images), **dict.fromkeys(budgets, partial(model, images))}
        try:
            times = in_turns(calls, rounds, within=lambda b: forced(model, chosen.get(b, {})))
        finally:
            for hook in hooks:
                hook.remove()
        count = costs(model, images[:1])
    rows = []
    for b, choices in chosen.items():
        spent = sum(
            float(torch.tensor(modules[name].costs)[k.cpu()].sum()) for name, k in choices.items()
        )
        share = spent / (count.learners * len(images))
        rows.append({
            "budget": share, "MMACs": len(images) * count.at(share) / 1e6,
            "ms": 1e3 * times[b].median, "dense ms": 1e3 * times[0.0].median,
            "ratio": ratio(times[b], times[0.0]).median,
            "linear": count.at(share) / count.dense,
        })  # fmt: skip
    return rows


def run_gate(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """A forward pre-hook: run the gate, so that its time counts where choices are forced."""
    assert isinstance(module, ACM)
    module.gate.pick(args[0])
