"""A model for a time: what each module does is chosen from times measured on this device.

A module runs all its learners, the first k for all tokens, or what its gate says, for each token or
for each image as a whole. Gates cost time themselves, and so does sorting: they are taken where the
clock says that they pay, at this batch size, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.acm.analysis.turns import Ratio, in_turns, ratio
from potstill.acm.layers.budget import all_batches, evaluation, images_for
from potstill.acm.layers.module import ACM, Mode, require_acms, restored, set_mode
from potstill.core import ConfigError, Timing, tap

__all__ = ["FittedTime", "Option", "cheapest", "fit_time"]

SHARES = (0.25, 0.5, 0.75)
"""Mean shares of the learners' cost at which gates are tried."""

_TRIES, _GRID = 6, 4096


class Option(NamedTuple):
    """Something that a module could do.

    Attributes:
        mode: Number of learners, ``"gated"`` or ``"image"``.
        tilt: Tilt of the gate.
        seconds: Time of the module for a batch.
        damage: Distance that the model's output moves when this module alone does it.
    """

    mode: Mode
    tilt: float = 0.0
    seconds: float = 0.0
    damage: float = 0.0


Plan = Mapping[str, Option]


@dataclass(frozen=True)
class FittedTime:
    """What `fit_time` chose, and what was measured in the end.

    Attributes:
        modules: Choice by module.
        milliseconds: Median time of a batch.
        spread: The 20th and 80th percentile of that time.
        ratio: Time over that of all learners everywhere, in turns.
        damage: Mean distance of the outputs from those of all learners: Kullback-Leibler
            divergence, or for models without classes the relative squared error.
        refused: Why gates that were planned were not used; empty where there is nothing to say.
    """

    modules: dict[str, Option]
    milliseconds: float
    spread: tuple[float, float]
    ratio: Ratio
    damage: float
    refused: str = ""


def fit_time(
    model: nn.Module,
    batches: Iterable[Any],
    milliseconds: float,
    *,
    batch: int = 1,
    rounds: int = 7,
    seconds: float = 0.02,
) -> FittedTime:
    """Choose what each module does, so that a batch takes at most ``milliseconds`` here.

    Times of all options are measured module by module, on the inputs that it gets; those that are
    not faster than all learners are dropped. What an option damages is measured on the outputs, one
    module at a time. Of all combinations that fit, the one with the least sum of damages is taken
    (exactly, on a grid of time), timed as a whole, and corrected until it fits. A combination with
    gates must then be at least as fast, and damage no more on images that had no part in the
    choice, than the best one without: else the latter is the result.

    Args:
        model: Adaptive model, on its device; its modes and tilts are set.
        batches: Some images like those to come, in batches of images or (images, labels); labels
            are not read. The second half of the batches is kept for the last comparison.
        milliseconds: Time of a batch, > 0.
        batch: Images a batch whose time counts.
        rounds: Rounds of timing, in turns.
        seconds: Least duration of a timed block.

    Raises:
        ConfigError: Nothing adaptive; no images, or fewer than ``batch``; a time that no choice
            reaches: the message says what is reached.
    """
    if not milliseconds > 0 or batch < 1:
        raise ConfigError(
            f"fit_time: milliseconds and batch must be positive, got {milliseconds} and {batch}"
        )
    require_acms(model, "fit_time")
    held = [images_for(model, one) for one in all_batches("fit_time", batches)]
    images = torch.cat(held)[:batch]
    if len(images) < batch:
        raise ConfigError(f"fit_time: images must fill a batch of {batch}, got {len(images)}")
    half = (len(held) + 1) // 2
    seen, kept = held[:half], held[half:] or held[:half]
    with evaluation(model), _kept(model):
        bench = _Bench(model, images, rounds, seconds)
        found = bench.fit(_options(bench, seen), kept, 1e-3 * milliseconds)
    _apply(model, found.modules)
    return found


def cheapest(options: Sequence[Sequence[Option]], seconds: float) -> list[Option] | None:
    """One option of each row, with the least sum of damages whose times sum to at most ``seconds``.

    By dynamic programming over a grid of time, on which times are rounded up; None if none fits.

    Example:
        >>> narrow, wide = Option(1, seconds=1.0, damage=0.5), Option(2, seconds=3.0)
        >>> sorted(option.mode for option in cheapest([[narrow, wide], [narrow, wide]], 4.1))
        [1, 2]
    """
    if seconds <= 0:
        return None
    step = seconds / _GRID
    best = np.zeros(_GRID + 1)  # least damage with at most that time
    chosen = []
    for row in options:
        candidates = np.full((len(row), _GRID + 1), np.inf)
        for i, option in enumerate(row):
            if (need := int(np.ceil(option.seconds / step - 1e-9))) <= _GRID:
                candidates[i, need:] = best[: _GRID + 1 - need] + option.damage
        chosen.append(candidates.argmin(0))
        best = candidates.min(0)
    if not np.isfinite(best[-1]):
        return None
    left, picked = _GRID, []
    for row, choice in zip(reversed(options), reversed(chosen), strict=True):
        option = row[choice[left]]
        left -= int(np.ceil(option.seconds / step - 1e-9))
        picked.append(option)
    return picked[::-1]


class _Bench:
    """Times and damages of plans for one model, device and batch."""

    def __init__(self, model: nn.Module, images: Tensor, rounds: int, seconds: float) -> None:
        self.model, self.images, self.rounds, self.seconds = model, images, rounds, seconds
        self.modules = require_acms(model, "fit_time")
        self.dense: Plan = {name: Option(acm.count) for name, acm in self.modules.items()}

    def times(self, plans: Mapping[str, Plan]) -> dict[str, Timing]:
        """Of the whole model, in turns."""
        calls = dict.fromkeys(plans, partial(self.model, self.images))
        return in_turns(calls, self.rounds, self.seconds, lambda name: self.doing(plans[name]))

    @contextmanager
    def doing(self, plan: Plan) -> Iterator[None]:
        with _kept(self.model):
            _apply(self.model, {**self.dense, **plan})
            yield

    def outputs(self, plan: Plan, batches: Sequence[Tensor]) -> list[Tensor]:
        with self.doing(plan):
            return [self.model(images).float() for images in batches]

    def damage(self, plan: Plan, batches: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
        """Mean distance of the outputs from ``wanted``."""
        pairs = list(zip(self.outputs(plan, batches), wanted, strict=True))
        return float(torch.cat([self._distance(*pair) for pair in pairs]).mean())

    def _distance(self, mine: Tensor, wanted: Tensor) -> Tensor:
        mine, wanted = mine.flatten(1), wanted.flatten(1)
        if getattr(self.model, "num_classes", 0) > 1:
            mine, wanted = mine.log_softmax(-1), wanted.log_softmax(-1)
            return F.kl_div(mine, wanted, reduction="none", log_target=True).sum(-1)
        return (mine - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)

    def fit(
        self, options: Mapping[str, list[Option]], kept: Sequence[Tensor], target: float
    ) -> FittedTime:
        """The best plan that fits ``target``, in seconds."""
        fixed = {name: [o for o in row if isinstance(o.mode, int)] for name, row in options.items()}
        narrow, plan, refused = self._within(fixed, target), self._within(options, target), ""
        wanted = self.outputs({}, kept)
        gates = plan is not None and any(not isinstance(o.mode, int) for o in plan.values())
        if gates and narrow is not None:
            assert plan is not None
            refused = self._against(plan, narrow, kept, wanted)
        chosen = narrow if refused or plan is None else plan
        if chosen is None:
            least = {n: min(row, key=lambda o: o.seconds) for n, row in options.items()}
            reached = 1e3 * self.times({"": least})[""].median
            raise ConfigError(
                f"fit_time: milliseconds must be at least about {reached:.3g}, what the fastest "
                f"choice takes here for a batch of {len(self.images)}, got {1e3 * target:.3g}"
            )
        times = self.times({"dense": self.dense, "": chosen})
        if times[""].median > times["dense"].median <= target:
            chosen, times[""] = self.dense, times["dense"]  # never slower
        mine = times[""]
        return FittedTime(
            dict(chosen), 1e3 * mine.median, (1e3 * mine.p20, 1e3 * mine.p80),
            ratio(mine, times["dense"]), self.damage(chosen, kept, wanted), refused,
        )  # fmt: skip

    def _within(self, options: Mapping[str, list[Option]], target: float) -> Plan | None:
        """The least damage whose measured time fits; sums of modules only guide."""
        full = {name: row[-1].seconds for name, row in options.items()}
        rest = self.times({"": self.dense})[""].median - sum(full.values())
        rounding = 1 + 2 * len(full) / _GRID
        allowed = min(target - rest, sum(full.values()) * rounding)
        for _ in range(_TRIES):
            found = cheapest(list(options.values()), allowed)
            if found is None:
                return None
            plan = dict(zip(options, found, strict=True))
            over = self.times({"": plan})[""].median - target
            if over <= 0:
                return plan
            allowed = min(allowed, sum(option.seconds for option in found)) - over
        return None

    def _against(
        self, plan: Plan, narrow: Plan, kept: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> str:
        """Why ``plan`` is no better than ``narrow``; empty where it is."""
        times = self.times({"gated": plan, "narrow": narrow})
        slower = ratio(times["gated"], times["narrow"]).median
        mine, other = (self.damage(p, kept, wanted) for p in (plan, narrow))
        if slower > 1:
            return f"gates take {slower:.3g} of the time of the best choice without"
        if mine > other:
            return f"with gates the outputs move by {mine:.3g}, without by {other:.3g}"
        return ""


def _options(bench: _Bench, batches: Sequence[Tensor]) -> dict[str, list[Option]]:
    """What each module could do, with times and damages; all learners come last."""
    inputs = _inputs(bench, batches)
    wanted = bench.outputs({}, batches)
    found = {}
    for name, acm in bench.modules.items():
        tried = [Option(k) for k in range(acm.least, acm.count + 1)]
        tried += list(_gated(acm, inputs[name]))
        timed = _timed(bench, acm, tried, inputs[name][: len(bench.images)])
        full = timed[acm.count - acm.least]
        faster = [option for option in timed if option.seconds < full.seconds]
        found[name] = [
            option._replace(damage=bench.damage({name: option}, batches, wanted))
            for option in faster
        ] + [full]
    return found


def _inputs(bench: _Bench, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """What the modules get when all learners run, of all images."""
    parts: dict[str, list[Tensor]] = {name: [] for name in bench.modules}
    for images in (bench.images, *batches):
        with bench.doing({}), tap(bench.model, *parts) as taps:
            bench.model(images)
        for name, part in parts.items():
            part.append(taps[name].input)
    return {name: torch.cat(part) for name, part in parts.items()}


def _timed(bench: _Bench, acm: ACM, options: list[Option], x: Tensor) -> list[Option]:
    @contextmanager
    def doing(number: int) -> Iterator[None]:
        with _kept(acm):
            _set(acm, options[number])
            yield

    calls = dict.fromkeys(range(len(options)), partial(acm, x))
    times = in_turns(calls, bench.rounds, bench.seconds, doing)
    return [option._replace(seconds=times[i].median) for i, option in enumerate(options)]


def _gated(acm: ACM, x: Tensor) -> Iterator[Option]:
    """Gates at the shares of `SHARES`, for tokens and for images, where they tell these apart."""
    with _kept(acm):
        acm.gate.tilt.zero_()
        logits = acm.gate(x).float().flatten(1, -2)
    ways: dict[Mode, Tensor] = {"gated": logits, "image": logits.mean(1, keepdim=True)}
    costs = torch.tensor(acm.costs[acm.least :], device=x.device) / acm.costs[-1]
    steps = torch.arange(logits.shape[-1], device=x.device)
    for mode, scores in ways.items():
        for share in SHARES:
            low, high = -64.0, 64.0
            for _ in range(30):
                tilt = (low + high) / 2
                choices = (scores - tilt * steps).argmax(-1)
                low, high = (tilt, high) if costs[choices].mean() > share else (low, tilt)
            if len(choices.unique()) > 1:
                yield Option(mode, high)


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Modes and tilts are put back when the block ends."""
    acms = [module for module in model.modules() if isinstance(module, ACM)]
    tilts = [acm.gate.tilt.clone() for acm in acms]
    with ExitStack() as stack:
        stack.enter_context(restored(acms, "mode"))
        try:
            yield
        finally:
            for acm, tilt in zip(acms, tilts, strict=True):
                acm.gate.tilt.copy_(tilt)


def _apply(model: nn.Module, plan: Plan) -> None:
    for name, acm in require_acms(model, "fit_time").items():
        _set(acm, plan[name])


@torch.no_grad()
def _set(acm: ACM, option: Option) -> None:
    set_mode(acm, option.mode)
    if not isinstance(option.mode, int):
        acm.gate.tilt.fill_(option.tilt)
