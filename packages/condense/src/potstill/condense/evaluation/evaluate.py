"""What a condensed set is worth: fresh networks, and random images under the same protocol."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from potstill.condense.condensed import Condensed, random_sets
from potstill.condense.data.pool import Pool
from potstill.condense.data.siamese import Siamese
from potstill.condense.models.convnet import make_network
from potstill.condense.models.learning import Learner, Samples, classify, drops, objective_of
from potstill.core import Column, ConfigError, DataError, Report, accuracy, key, seed_all
from potstill.core.engine import Training, fit_with

__all__ = ["Evaluation", "Protocol", "evaluate", "robustness"]


@dataclass(frozen=True)
class Protocol:
    """How networks are trained on a condensed set, and on what it is compared with.

    The defaults are the protocol of the field (Zhao et al.'s code): SGD with momentum 0.9 and
    weight decay 5e-4, the rate a tenth after half of the steps, one augmentation an image.

    Attributes:
        networks: Networks by name.
        repeats: Fresh networks of each name.
        draws: Random sets that the networks of the baseline are trained on.
        steps: Steps of every training on a set of the condensed size.
        full_steps: Steps of training on all images.
        batch: Images of a step.
        lr: Learning rate where the set has none of its own.
        augment: Operations of the augmentation; none for none.
        margins: Also train without augmentation, for ARS.
        seed: Seed of everything.

    Raises:
        ConfigError: No network, or a number below 1.
    """

    networks: tuple[str, ...] = ("convnet-3-128-instance",)
    repeats: int = 5
    draws: int = 5
    steps: int = 1000
    full_steps: int = 5000
    batch: int = 256
    lr: float = 0.01
    augment: tuple[str, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
    margins: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = self.repeats, self.draws, self.steps, self.full_steps, self.batch
        if not self.networks or min(numbers) < 1 or not self.lr > 0:
            raise ConfigError(
                "Protocol: networks must be named, repeats, draws, steps, full_steps and batch at "
                f"least 1 and lr positive, got {self}"
            )


class Arm(NamedTuple):
    """One way of training.

    Attributes:
        name: Row of the table.
        images: Images, or a pool.
        labels: Class of each.
        logits: Soft labels, or None.
        kind: Kind of the labels.
        plain: Without augmentation.
        steps: Length of the training.
        lr: Learning rate.
    """

    name: str
    images: Any
    labels: Tensor
    logits: Tensor | None
    kind: str
    plain: bool
    steps: int
    lr: float


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in per cent, by network and arm.

    Attributes:
        accuracies: One figure for each fresh network.
        labelled: Kind of the labels of the set.
        size: Number of its images.
        method: What made it.
    """

    accuracies: dict[str, dict[str, list[float]]]
    labelled: str
    size: int
    method: str

    def scores(self, network: str) -> dict[str, float]:
        """HLR, IOR, LRS and ARS of a network, accuracies as shares.

        ``HLR = full - condensed`` with hard labels; ``IOR = condensed - random`` with the labels
        and the protocol of the set; ``LRS = (e^a - 1/e) / (e - 1/e)`` with
        ``a = (IOR - HLR) / 2``; ARS alike from the mean of the differences to random with and
        without augmentation.

        Source: Li et al., DD-Ranking, 2025, with its weights of one half.
        """
        mean = {
            arm: statistics.fmean(values) / 100 for arm, values in self.accuracies[network].items()
        }
        hlr = mean["all images"] - mean.get("hard labels", mean["condensed"])
        ior = mean["condensed"] - mean["random"]
        found = {"HLR": hlr, "IOR": ior, "LRS": robustness((ior - hlr) / 2)}
        if "random, plain" in mean:
            plain = mean["condensed, plain"] - mean["random, plain"]
            found["ARS"] = robustness((ior + plain) / 2)
        return found

    def report(self, data: str = "", seed: int = 0, device: str = "auto") -> Report:
        """The table, with the random images of the same size always in it."""
        summary = "; ".join(
            f"{network}: {statistics.fmean(arms['condensed']):.1f} % against "
            f"{statistics.fmean(arms['random']):.1f} % of random images with the same labels"
            for network, arms in self.accuracies.items()
        )
        columns = {"accuracy": Column("%", "max", 3)}
        report = Report(
            f"{self.size} images by {self.method}, {self.labelled} labels", summary=f"{summary}.",
            columns=columns, label="trained on", data=data, seed=seed, device=device,
        )  # fmt: skip
        several = len(self.accuracies) > 1
        for network, arms in self.accuracies.items():
            for arm, values in arms.items():
                report.add(f"{network}, {arm}" if several else arm, accuracy=values)
        report.bars("accuracy", "Test accuracy, mean and spread of fresh networks", "Accuracy")
        header = ["network", "HLR", "IOR", "LRS", "ARS"]
        rows = [
            [n, *(self.scores(n).get(column, "not measured") for column in header[1:])]
            for n in self.accuracies
        ]
        report.table(header, rows, "Scores of DD-Ranking")
        return report


def robustness(difference: float) -> float:
    """``(e^a - 1/e) / (e - 1/e)``: 0 at -1, 1 at 1.

    Example:
        >>> round(robustness(0.0), 6)
        0.268941
    """
    return (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))


Fit = Callable[..., Any]


def evaluate(
    condensed: Condensed,
    train: Pool,
    test: Pool,
    protocol: Protocol | None = None,
    *,
    fit: Fit | None = None,
    training: Training | None = None,
    world: int = 1,
) -> Evaluation:
    """Train fresh networks on a condensed set, on random images and on all images.

    The random images have the size of the set, and its kind of labels.

    Args:
        condensed: The set.
        train: What it was condensed from.
        test: Images that nothing was trained on.
        protocol: How to train.
        fit: ``fit(learner, batches, folder=..., ...)``, as `Job.fit`; `fit_with` by default.
        training: Device, precision and budget for ``fit`` by default.
        world: Processes that share a batch.

    Raises:
        DataError: The pool is not what the set was condensed from, or the test images are of other
            classes or another size.
    """
    protocol = protocol or Protocol()
    _check(condensed, train, test)
    options = training or Training(steps=1, device="cpu")
    run = fit or (lambda learner, batches, folder, **more: fit_with(
        options, learner, batches, progress=False, **more))  # fmt: skip
    found: dict[str, dict[str, list[float]]] = {}
    for network in protocol.networks:
        for arm, number in _trainings(condensed, train, protocol):
            seed_all("evaluate", network, protocol.seed, number)  # equal weights in all arms
            fresh = make_network(network, len(train.classes), train.shape)
            teacher = condensed.teacher if arm.kind == "teacher" else None
            learner = Learner(
                fresh, Siamese(() if arm.plain else protocol.augment),
                objective_of(arm.kind, teacher.temperature if teacher else 1.0),
                teacher.network if teacher else None,
            )  # fmt: skip
            batches = Samples(
                arm.images, arm.labels, max(min(protocol.batch, len(arm.labels)) // world, 1),
                arm.logits, drop_last=world > 1,
            )  # fmt: skip
            run(
                learner, batches, folder=f"{network}/{arm.name}/{number}", steps=arm.steps,
                epochs=None, lr=arm.lr, seed=key(protocol.seed, number), schedule=drops,
                optimizer=_sgd,
            )  # fmt: skip
            share = accuracy(classify(fresh, test), test.labels)
            found.setdefault(network, {}).setdefault(arm.name, []).append(100 * share)
    method = str(condensed.about.get("method", "an unknown method"))
    return Evaluation(found, condensed.labelled, len(condensed), method)


def _trainings(condensed: Condensed, train: Pool, protocol: Protocol) -> Iterator[tuple[Arm, int]]:
    """Every arm and repeat; a set with hard labels needs no arm for these."""
    kind, lr = condensed.labelled, condensed.lr or protocol.lr
    own = Arm("condensed", condensed.images, condensed.labels, condensed.logits, kind, False,
              protocol.steps, lr)  # fmt: skip
    hard = own._replace(name="hard labels", logits=None, kind="hard")
    everything = Arm("all images", train, train.labels, None, "hard", False, protocol.full_steps,
                     protocol.lr)  # fmt: skip
    draws = _baseline(condensed, train, protocol, own)
    for number in range(protocol.repeats):
        yield own, number
        yield draws[number % len(draws)], number
        if protocol.margins:
            yield own._replace(name="condensed, plain", plain=True), number
            draw = draws[number % len(draws)]
            yield draw._replace(name="random, plain", plain=True), number
        if kind != "hard":
            yield hard, number
        yield everything, number


def _baseline(condensed: Condensed, train: Pool, protocol: Protocol, own: Arm) -> Sequence[Arm]:
    rows, logits = condensed.baseline, condensed.baseline_logits
    if rows is None:
        rows = random_sets(train, condensed.labels, protocol.draws, protocol.seed)
    if condensed.labelled == "soft" and logits is None:
        raise DataError(
            "evaluate: a set with soft labels must have random images with such labels, got none; "
            "condense it again"
        )
    found = []
    for number, each in enumerate(rows[: protocol.draws]):
        soft = None if logits is None else logits[number]
        images, labels = train.normalized(each), train.labels[each]
        found.append(own._replace(name="random", images=images, labels=labels, logits=soft))
    return found


def _check(condensed: Condensed, train: Pool, test: Pool) -> None:
    if (known := condensed.about.get("data")) not in (None, train.digest()):
        raise DataError(
            f"evaluate: train must be the images that were condensed (digest {known}), got "
            f"{train.digest()}"
        )
    if test.classes != train.classes or test.shape != train.shape:
        raise DataError(
            f"evaluate: test must have the classes and the size of train, got "
            f"{len(test.classes)} classes of {list(test.shape)} and {len(train.classes)} of "
            f"{list(train.shape)}"
        )
    if test.statistics != train.statistics:
        raise DataError(
            "evaluate: test must be normalised as train is; pass statistics=train.statistics"
        )


_sgd = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4)
