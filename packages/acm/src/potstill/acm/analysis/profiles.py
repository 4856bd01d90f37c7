"""What an adaptive model does and what it costs: accuracy, budget, multiply-adds, milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.acm.layers.budget import Costs, all_batches, costs, evaluation, images_for, share
from potstill.acm.layers.module import record_gates, require_acms
from potstill.core import accuracy, latency

__all__ = ["Profile", "predict", "profile"]


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
    dense_milliseconds: float = float("nan")

    def row(self) -> dict[str, float]:
        """The scalar figures, for a table."""
        return {
            "top-1 %": 100 * self.accuracy,
            "budget": self.budget,
            "spread": self.spread,
            "MMACs": self.macs / 1e6,
            "MACs ratio": self.macs / self.dense_macs,
            f"ms (batch {self.batch})": self.milliseconds,
            "time ratio": self.milliseconds / self.dense_milliseconds,
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
        batches: Batches of images or (images, labels); timing uses the first.
        dense: The dense model, to time beside it.
        blocks: Timed blocks, of 50 ms or more; the median counts. For claims use the benchmarks,
            which interleave the two.

    Raises:
        ConfigError: No batch, or nothing adaptive.
    """
    held = all_batches("profile", batches)
    modules = require_acms(model, "profile")
    found, shares = [], []
    tallies = {name: torch.zeros(acm.count + 1) for name, acm in modules.items()}
    with evaluation(model):
        for batch in held:
            with record_gates(model) as readings:
                found.append(predict(model, [batch]))
            shares.append(share(readings).cpu())
            for name, reading in readings.items():
                chosen = torch.bincount(reading.choices.flatten(), minlength=len(tallies[name]))
                tallies[name] += chosen.cpu()
        first = images_for(model, held[0])
        count: Costs = costs(model, first[:1])
        time = latency(model, first, blocks=blocks).median
    beside = float("nan")
    if dense is not None:
        with evaluation(dense):
            beside = latency(dense, images_for(dense, held[0]), blocks=blocks).median
    images = torch.cat(shares)
    logits, labels = zip(*found, strict=True)
    choices = {name: tally / tally.sum() for name, tally in tallies.items()}
    spending = {
        name: float(choices[name] @ torch.tensor(acm.costs).float()) / acm.costs[-1]
        for name, acm in modules.items()
    }
    return Profile(
        accuracy=float("nan")
        if labels[0] is None
        else accuracy(torch.cat(logits), torch.cat(labels)),
        budget=float(images.mean()),
        spread=float(images.std(unbiased=False)),
        modules=spending,
        choices=choices,
        images=images,
        macs=count.at(float(images.mean())),
        dense_macs=float(count.dense),
        milliseconds=1e3 * time,
        batch=len(first),
        dense_milliseconds=1e3 * beside,
    )
