"""The papers' sizes on a GPU: CIFAR-10 with the usual network, Imagenette with a ResNet-18.

python -m benchmarks condense --check

CIFAR-10 is wanted as class folders, ``vision/cifar10/train`` and ``vision/cifar10/test``.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apps.condense.gallery import folders
from potstill.condense import (
    Condensed,
    Learner,
    Pool,
    Protocol,
    RecoverConfig,
    Samples,
    condense,
    evaluate,
    make_network,
    preset,
    select,
)
from potstill.core import Training, locate, seed_all
from potstill.core.engine import fit_with
from potstill.core.measure.bench import Figure, at_least, benchmark

CIFAR, IMAGENETTE = "vision/cifar10", "vision/imagenette_96.zip"
CARD = Training(steps=1, device="cuda")
NOTED = "issue 22: targets on a GPU"


def cifar() -> tuple[Pool, Pool]:
    """All of CIFAR-10."""
    return folders(locate(CIFAR) / "train", locate(CIFAR) / "test")


def judged(made: Condensed, pools: tuple[Pool, Pool], network: str) -> dict[str, float]:
    """Mean accuracy by arm of three fresh networks."""
    protocol = Protocol((network,), repeats=3, draws=3, margins=False)
    arms = next(iter(evaluate(made, *pools, protocol, training=CARD).accuracies.values()))
    return {name: statistics.fmean(values) for name, values in arms.items()}


def published(name: str, steps: int, **follow: Any) -> dict[str, float]:
    """Accuracies with the options of a preset, in fewer steps."""
    config, pools = preset(name), cifar()
    with TemporaryDirectory() as folder:
        made = condense(
            pools[0], config.method, config.ipc, out=folder, network=config.network,
            match=config.match, follow=replace(config.follow, **follow), progress=False,
            training=replace(config.training, steps=steps, device="cuda"),
        )  # fmt: skip
    return judged(made, pools, config.network)


def figures(arms: dict[str, float]) -> dict[str, Figure]:
    return {name: Figure(value, "%") for name, value in arms.items()}


@benchmark(device="cuda", data=CIFAR, budget=480, targets={"condensed": at_least(45, NOTED)})
def dm_card() -> dict[str, Figure]:
    """DM at ten images a class of CIFAR-10, 8,000 steps (published: 48.9 % after 20,000)."""
    return figures(published("dm-cifar10", 8000))


@benchmark(device="cuda", data=CIFAR, budget=960, targets={"over dm": at_least(-1, NOTED)})
def datadam_card() -> dict[str, Figure]:
    """DataDAM with batch norm beside DM, both at ten images a class and 8,000 steps."""
    own, dm = published("datadam-cifar10-code", 8000), published("dm-cifar10", 8000)
    gap = Figure(own["condensed"] - dm["condensed"], "points")
    return {**figures(own), "over dm": gap}


@benchmark(device="cuda", data=CIFAR, budget=480, targets={"condensed": at_least(40, NOTED)})
def datm_card_1() -> dict[str, Figure]:
    """DATM at one image a class, 10 experts of 20 epochs, 1,000 steps (published: 46.9 %)."""
    return figures(published("datm-cifar10-1", 1000, experts=10, epochs=20))


@benchmark(device="cuda", data=CIFAR, budget=480, targets={"condensed": at_least(58, NOTED)})
def datm_card_10() -> dict[str, Figure]:
    """DATM at ten images a class, 10 experts of 22 epochs, 1,000 steps (published: 66.8 %)."""
    return figures(published("datm-cifar10-10", 1000, experts=10, epochs=22))


@benchmark(device="cuda", data=CIFAR, budget=480, targets={"gain": at_least(1, NOTED)})
def dq_card() -> dict[str, Figure]:
    """An eighth of CIFAR-10 by graph cuts in a ResNet-18's features, over random images."""
    pools, name = cifar(), "resnet18"
    seed_all("features")
    network = make_network(name, 10, pools[0].shape)
    samples = Samples(pools[0], pools[0].labels, 256)
    fit_with(replace(CARD, steps=4000, lr=1e-3), Learner(network), samples, progress=False)
    rows = select(pools[0], ratio=0.125, features=network)
    arms = judged(Condensed.of(pools[0], rows, method="graphcut"), pools, name)
    return {**figures(arms), "gain": Figure(arms["condensed"] - arms["random"], "points")}


@benchmark(device="cuda", data=IMAGENETTE, budget=480, targets={"gain": at_least(0, NOTED)})
def cda_card() -> dict[str, Figure]:
    """CDA at ten images a class of Imagenette, over random images with the same teacher."""
    where = locate(IMAGENETTE) / "imagenette"
    pools = folders(where / "train", where / "val")
    with TemporaryDirectory() as folder:
        made = condense(
            pools[0], "cda", 10, out=Path(folder), progress=False,
            recover=RecoverConfig("resnet18", strength=0.01),
            training=Training(steps=1000, device="cuda"),
        )  # fmt: skip
    arms = judged(made, pools, "resnet18")
    return {**figures(arms), "gain": Figure(arms["condensed"] - arms["random"], "points")}
