"""Latency against budget, on this machine: does a saved multiply-add save time?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from potstill.acm import backends
from potstill.acm.layers.budget import check_budget, costs, evaluation
from potstill.acm.layers.module import ACM, acms, forced, record_gates, require_acms
from potstill.acm.layers.surgery import deacmize
from potstill.core import ConfigError, latency

__all__ = ["SweepRow", "dense_of", "random_choices", "run_gate", "sweep_layer", "sweep_model"]

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
        dense: What it replaces.
        tokens: Tokens of a call.
        budgets: Mean budgets.
        backend: See `potstill.acm.backends`.
        rounds: Turns; medians count.

    Raises:
        BackendError: The backend cannot run here.
        ConfigError: A budget out of range.
    """
    backends.BACKENDS.resolve(backend, acm.up.device)
    x = torch.randn(tokens, acm.inputs, device=acm.up.device, dtype=acm.up.dtype)
    chosen = {
        b: random_choices(tokens, acm.count, b, least=acm.least).to(x.device) for b in budgets
    }

    def gated(k: Tensor) -> Tensor:
        acm.gate.pick(x)
        return backends.run(x, k, acm.learners, backend)

    with torch.inference_mode():
        sides = {0.0: partial(_seconds, dense, x)}
        times = _in_turns(
            sides | {b: partial(_seconds, gated, k) for b, k in chosen.items()}, rounds
        )
    costs, gate = torch.tensor(acm.costs), acm.gate_cost / acm.costs[-1]
    rows = []
    for b, k in chosen.items():
        macs = float(costs[k.cpu()].sum()) + tokens * acm.gate_cost
        share = float(k.float().mean()) / acm.count
        rows.append(_row(share, macs, times[b], times[0.0], gate + share))
    return rows


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
        shapes = {name: reading.choices.shape for name, reading in readings.items()}
        chosen = {
            b: {
                name: random_choices(shape.numel(), modules[name].count, b, i, modules[name].least)
                .view(shape)
                .to(images.device)
                for i, (name, shape) in enumerate(shapes.items())
            }
            for b in budgets
        }

        def overruled(choices: dict[str, Tensor]) -> float:
            with forced(model, choices):
                return _seconds(model, images)

        hooks = [acm.register_forward_pre_hook(run_gate) for acm in modules.values()]
        try:
            sides = {0.0: partial(_seconds, dense, images)}
            times = _in_turns(sides | {b: partial(overruled, k) for b, k in chosen.items()}, rounds)
        finally:
            for hook in hooks:
                hook.remove()
        count = costs(model, images[:1])
    rows = []
    for b, choices in chosen.items():
        share = sum(
            float(torch.tensor(modules[name].costs)[k.cpu()].sum()) for name, k in choices.items()
        ) / (count.learners * len(images))
        macs = count.at(share)
        rows.append(_row(share, len(images) * macs, times[b], times[0.0], macs / count.dense))
    return rows


def run_gate(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """A forward pre-hook: run the gate, so that its time counts where choices are forced."""
    assert isinstance(module, ACM)
    module.gate.pick(args[0])


def _seconds(call: Callable[..., object], *inputs: Any) -> float:
    return latency(call, *inputs, blocks=1, warmup=1).median


def _in_turns(sides: Mapping[float, Callable[[], float]], rounds: int) -> dict[float, float]:
    """Median seconds of each side, measured in turns so that a disturbance hits all of them."""
    times: list[dict[float, float]] = []
    for _ in range(rounds):
        times.append({name: measure() for name, measure in sides.items()})
    return {name: median(one[name] for one in times) for name in sides}


def _row(budget: float, macs: float, seconds: float, dense: float, linear: float) -> SweepRow:
    return {
        "budget": budget,
        "MMACs": macs / 1e6,
        "ms": 1e3 * seconds,
        "dense ms": 1e3 * dense,
        "ratio": seconds / dense,
        "linear": linear,
    }


def dense_of(model: nn.Module, path: str) -> nn.Module:
    """The dense module that the adaptive one at ``path`` becomes at full budget.

    Raises:
        ConfigError: No such adaptive module.
    """
    modules = acms(model)
    if path not in modules:
        raise ConfigError(f"dense_of: path must be an adaptive module, got {path!r}")
    full = {name: acm.count for name, acm in modules.items()}
    return deacmize(model, full).get_submodule(path)
