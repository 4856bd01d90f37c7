"""What an adaptive model does and what it costs: accuracy, budget, multiply-adds, milliseconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill.acm.analysis.turns import Ratio, in_turns, ratio
from potstill.acm.layers.budget import Costs, costs, evaluation, images_for, share
from potstill.acm.layers.module import acms, record_gates, require_acms, restored, set_mode
from potstill.core import ConfigError, Timing

__all__ = ["Profile", "in_mode", "predict", "profile", "profiles"]


@dataclass(frozen=True)
class Profile:
    """The figures of one mode of a model; every count of multiply-adds has its milliseconds.

    Attributes:
        accuracy: Top-1, a fraction; NaN when the batches have no labels.
        budget: Mean share of the learners' cost.
        spread: Standard deviation of that share over the images.
        modules: Mean share by module.
        choices: Shares of tokens that chose 0, 1, ..., N, [N + 1], by module.
        images: Share of each image, [images].
        macs: Multiply-adds of the whole model for the mean image, gates included.
        dense_macs: The same without gates at full budget.
        milliseconds: Median time of a batch.
        batch: Images in that batch.
        dense_milliseconds: Median time of the dense model, when one was given.
        time: Seconds of a batch, one value a round.
        ratio: Time over that of the dense model, round by round: what may be compared.
    """

    accuracy: float
    budget: float
    spread: float
    modules: dict[str, float]
    choices: dict[str, Tensor]
    images: Tensor
    macs: float
    dense_macs: float
    milliseconds: float
    batch: int
    dense_milliseconds: float = math.nan
    time: Timing | None = None
    ratio: Ratio | None = None

    def row(self) -> dict[str, float]:
        """The scalar figures, for a table."""
        return {
            "top-1 %": 100 * self.accuracy,
            "budget": self.budget,
            "spread": self.spread,
            "MMACs": self.macs / 1e6,
            "MACs ratio": self.macs / self.dense_macs,
            f"ms (batch {self.batch})": self.milliseconds,
            "time ratio": self.ratio.median if self.ratio else math.nan,
        }


def predict(model: nn.Module, batches: Iterable[Any]) -> tuple[Tensor, Tensor | None]:
    """Logits of all images, and their labels if the batches have any; on the CPU."""
    logits, labels = [], []
    with evaluation(model):
        for batch in batches:
            logits.append(model(images_for(model, batch)).float().cpu())
            if isinstance(batch, list | tuple):
                labels.append(batch[1].cpu())
    return torch.cat(logits), torch.cat(labels) if labels else None


def profile(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    dense: nn.Module | None = None,
    blocks: int = 7,
) -> Profile:
    """Measure ``model`` in its present mode.

    Args:
        model: Adaptive model.
        batches: Batches of images or (images, labels), read once; timing uses the first.
        dense: The dense model, to time in turns with it.
        blocks: Timed blocks, of 50 ms or more; the median counts.

    Raises:
        ConfigError: No batch, or nothing adaptive.
    """
    present = {name: acm.mode for name, acm in require_acms(model, "profile").items()}
    return profiles(model, batches, {"": present}, dense=dense, blocks=blocks)[""]


def profiles(
    model: nn.Module,
    batches: Iterable[Any],
    modes: Mapping[str, Any],
    *,
    dense: nn.Module | None = None,
    blocks: int = 7,
) -> dict[str, Profile]:
    """Measure ``model`` in several modes on the same images, timed in turns.

    Args:
        model: Adaptive model; its mode is put back.
        batches: As of `profile`.
        modes: Modes as of `set_mode`, by name.
        dense: The dense model; it takes its turns.
        blocks: Rounds.

    Raises:
        ConfigError: No batch, or nothing adaptive.
    """
    tallies = {name: _Tally(model) for name in modes}
    first = None
    with evaluation(model):
        for batch in batches:
            first = batch if first is None else first
            for name, mode in modes.items():
                with in_mode(model, mode):
                    tallies[name].add(batch)
        if first is None:
            raise ConfigError("profile: batches must hold at least one batch, got none")
        images = images_for(model, first)
        count = costs(model, images[:1])
        calls: dict[str, Any] = dict.fromkeys(modes, partial(model, images))
        with evaluation(dense or model):
            if dense is not None:
                calls[_DENSE] = partial(dense, images_for(dense, first))
            times = in_turns(calls, blocks, within=lambda name: in_mode(model, modes.get(name)))
    return {
        name: tally.profile(count, times[name], times.get(_DENSE), len(images))
        for name, tally in tallies.items()
    }


_DENSE = "the dense model"


@contextmanager
def in_mode(model: nn.Module, mode: Any) -> Iterator[None]:
    """`set_mode` inside the block; None leaves the modes alone."""
    with restored(acms(model).values(), "mode"):
        if mode is not None:
            set_mode(model, mode)
        yield


class _Tally:
    """What was chosen and what came out, batch after batch."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.modules = model, require_acms(model, "profile")
        self.hits: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.chosen = {name: torch.zeros(acm.count + 1) for name, acm in self.modules.items()}

    def add(self, batch: Any) -> None:
        with record_gates(self.model) as readings:
            logits, labels = predict(self.model, [batch])
        if labels is not None:
            self.hits.append(logits.argmax(1) == labels)
        self.shares.append(share(readings).cpu())
        for name, reading in readings.items():
            tally = self.chosen[name]
            tally += torch.bincount(reading.choices.flatten(), minlength=len(tally)).cpu()

    def profile(self, count: Costs, time: Timing, beside: Timing | None, batch: int) -> Profile:
        images = torch.cat(self.shares)
        choices = {name: tally / tally.sum() for name, tally in self.chosen.items()}
        return Profile(
            accuracy=float(torch.cat(self.hits).float().mean()) if self.hits else math.nan,
            budget=float(images.mean()),
            spread=float(images.std(unbiased=False)),
            modules={
                name: float(choices[name] @ torch.tensor(acm.costs).float()) / acm.costs[-1]
                for name, acm in self.modules.items()
            },
            choices=choices,
            images=images,
            macs=count.at(float(images.mean())),
            dense_macs=float(count.dense),
            milliseconds=1e3 * time.median,
            batch=batch,
            dense_milliseconds=1e3 * beside.median if beside else math.nan,
            time=time,
            ratio=ratio(time, beside) if beside else None,
        )
