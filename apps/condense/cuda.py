"""CIFAR-10 to ten images a class by DM with the paper's network; a step against one class by one.

python -m apps.condense.cuda                         the CIFAR-10 subset below POTSTILL_DATA
python -m apps.condense.cuda --train cifar/train --test cifar/test     all of it, if you have it
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from apps import card
from apps.condense.gallery import digits, folders, sections
from benchmarks.condense.speed import loop_over_classes
from potstill.condense import (
    DistributionMatching,
    MatchConfig,
    Pool,
    Protocol,
    Siamese,
    SyntheticImages,
    make_network,
)
from potstill.core import Training, locate


def race(pool: Pool, network: str, real: int, ipc: int, rounds: int) -> str:
    """A step on all classes at once against the public programs' loop over them."""
    classes, shape = len(pool.classes), pool.shape
    labels = torch.arange(classes).repeat_interleave(ipc)
    student = SyntheticImages(torch.randn(len(labels), *shape), labels).to(card.DEVICE)
    net = make_network(network, classes, shape).to(card.DEVICE)
    batch = torch.randn(classes * real, *shape, device=card.DEVICE)
    distiller = DistributionMatching(student, net, Siamese()).to(card.DEVICE)
    calls = {
        "one class after another": lambda: loop_over_classes(
            net, student.images, batch, classes, attention=False
        ).backward(),
        "all classes at once": lambda: distiller(batch, 0).total.backward(),
    }
    return card.table(card.turns(calls, rounds=rounds), "steps", 1)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Time a step, condense, judge; returns the page."""
    options = card.options_of(
        (__doc__ or "").splitlines()[0], arguments, train="folder of class folders to condense",
        test="folder of class folders to judge by",
    )  # fmt: skip
    small, ipc = options.small, 1 if options.small else 10
    network = "convnet-2-4-instance" if small else "convnet-3-128-instance"
    if small:
        pools = digits()
    elif options.train:
        pools = folders(Path(options.train), Path(options.test))
    else:
        cifar = locate("vision/cifar10_10k.zip") / "cifar10"
        pools = folders(cifar / "train", cifar / "test")
    real = 4 if small else 256
    times = race(pools[0], network, real, ipc, 2 if small else 9)
    protocol = Protocol((network,), repeats=3, draws=3, full_steps=5000, margins=False)
    make = partial(sections, pools, "dm", (ipc,))
    parts = make(
        replace(protocol, steps=2, full_steps=2) if small else protocol, options.out,
        network=network, match=MatchConfig(real=real),
        training=Training(steps=2 if small else 2000, device=card.DEVICE),
    )  # fmt: skip
    return card.write(options, "CIFAR-10 in a hundred images", {"A step of DM": times, **parts})


if __name__ == "__main__":
    main()
