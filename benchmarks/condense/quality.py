"""What condensed sets are worth, three synthesis seeds each, beside random images.

python -m benchmarks condense --check
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from apps.condense.gallery import DIGITS, digits, folders
from potstill.condense import (
    Condensed,
    FollowConfig,
    MatchConfig,
    Pool,
    Protocol,
    RecoverConfig,
    condense,
    evaluate,
    make_network,
    select,
)
from potstill.core import Training, locate, seed_all
from potstill.core.measure.bench import Figure, Skip, at_least, at_most, benchmark

SEEDS = (0, 1, 2)
Arms = dict[str, list[float]]


def cifar() -> tuple[Pool, Pool]:
    """The 10,000 images of the CIFAR-10 subset."""
    try:
        where = locate("vision/cifar10_10k.zip") / "cifar10"
    except OSError as error:
        raise Skip(str(error)) from error
    return folders(where / "train", where / "test")


def judged(
    make: Callable[[int, Path], Condensed], pools: tuple[Pool, Pool], protocol: Protocol
) -> Arms:
    """Accuracies of all arms, means over networks, for each synthesis seed."""
    arms: Arms = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            made = make(seed, Path(folder))
        found = evaluate(made, *pools, protocol)
        for name, values in next(iter(found.accuracies.values())).items():
            arms.setdefault(name, []).append(statistics.fmean(values))
    return arms


def gain(arms: Arms, name: str = "condensed", over: str = "random") -> list[float]:
    return [a - b for a, b in zip(arms[name], arms[over], strict=True)]


def small(network: str, steps: int, augment: tuple[str, ...], full: int = 300) -> Protocol:
    return Protocol(
        (network,), repeats=3, draws=3, steps=steps, full_steps=full, augment=augment, margins=False
    )


def dm_on_cifar(ipc: int, steps: int) -> dict[str, Figure]:
    pools, network = cifar(), "convnet-3-32-instance"

    def make(seed: int, out: Path) -> Condensed:
        return condense(
            pools[0], "dm", ipc, out=out, network=network, match=MatchConfig(real=64),
            training=Training(steps=steps, seed=seed, device="cpu"), progress=False,
        )  # fmt: skip

    every = ("color", "crop", "cutout", "flip", "scale", "rotate")
    # Training on all images is no part of the claim, and would take most of the time.
    arms = judged(make, pools, small(network, 300, every, full=1))
    return {"gain": Figure(gain(arms), "points"), "condensed": Figure(arms["condensed"], "%"),
            "random": Figure(arms["random"], "%")}  # fmt: skip


@benchmark(targets={"gain": at_least(8, "issue 22 (a): DM, 1 image a class")}, threads=1)
def dm_cifar_1() -> dict[str, Figure]:
    """DM at one image a class of the CIFAR-10 subset, over random images."""
    return dm_on_cifar(1, 250)


@benchmark(targets={"gain": at_least(10, "issue 22 (a): DM, 10 images a class")}, threads=1)
def dm_cifar_10() -> dict[str, Figure]:
    """DM at ten images a class of the CIFAR-10 subset, over random images."""
    return dm_on_cifar(10, 250)


@benchmark(
    targets={
        "8 % over random": at_least(1, "issue 22 (b): DQ at 8 %"),
        "31 % over all": at_least(-1, "issue 22 (b): DQ at 31 %"),
    },
    threads=1,
)
def dq_digits() -> dict[str, Figure]:
    """Bins of graph cuts on digits, with the features of a network trained on all of them."""
    pools, name = digits(), "convnet-2-32-instance"
    figures: dict[str, Figure] = {}
    from potstill.condense import Learner, Samples
    from potstill.core import fit

    seed_all("features")
    network = make_network(name, 10, pools[0].shape)
    samples = Samples(pools[0], pools[0].labels, 64)
    fit(Learner(network), samples, steps=600, lr=1e-3, progress=False)
    for percent in (8, 31):

        def make(seed: int, _: Path, share: float = percent / 100) -> Condensed:
            rows = select(pools[0], ratio=share, features=network, seed=seed)
            return Condensed.of(pools[0], rows, method="graphcut")

        arms = judged(make, pools, small(name, 300, DIGITS))
        figures[f"{percent} % over random"] = Figure(gain(arms), "points")
        figures[f"{percent} % over all"] = Figure(gain(arms, over="all images"), "points")
    return figures


@benchmark(
    targets={
        "gain": at_least(10, "issue 22 (c): DATM over random images with soft labels"),
        "gain over hard": at_least(10, "issue 22 (c): DATM over random images"),
        "seconds": at_most(60, "issue 22 (c): experts included"),
    },
    threads=1,
)
def datm_digits() -> dict[str, Figure]:
    """DATM at one image a class on digits, experts included."""
    pools, name = digits(), "convnet-2-32-instance"
    follow = FollowConfig(
        experts=6, epochs=30, expert_batch=64, flat=False, last=6, steps=20, batch=10,
        rate=0.02, rate_lr=1e-5, label_lr=0.5,
    )  # fmt: skip
    taken = []

    def make(seed: int, out: Path) -> Condensed:
        start = time.process_time()
        made = condense(
            pools[0], "datm", 1, out=out, network=name, augment=DIGITS, follow=follow,
            training=Training(steps=100, lr=10.0, seed=seed, device="cpu"), progress=False,
        )  # fmt: skip
        taken.append(time.process_time() - start)
        return made

    protocol = small(name, 300, DIGITS)
    arms = judged(make, pools, protocol)

    def random(seed: int, _: Path) -> Condensed:
        rows = select(pools[0], ipc=1, method="random", seed=seed)
        return Condensed.of(pools[0], rows, method="random")

    hard = judged(random, pools, protocol)["condensed"]
    over_hard = [a - b for a, b in zip(arms["condensed"], hard, strict=True)]
    return {"gain": Figure(gain(arms), "points"), "gain over hard": Figure(over_hard, "points"),
            "seconds": Figure(taken, "s", timed=True)}  # fmt: skip


@benchmark(targets={"over sre2l": at_least(10, "issue 22 (d): CDA over SRe2L")}, threads=1)
def cda_digits() -> dict[str, Figure]:
    """CDA and SRe2L at ten images a class on digits, beside random images with such labels."""
    pools, name = digits(), "convnet-2-32-instance"
    options = RecoverConfig("convnet-2-32-batch", 400, temperature=2.0, roll=1)
    arms = {}
    for method in ("cda", "sre2l"):

        def make(seed: int, out: Path, method: str = method) -> Condensed:
            return condense(
                pools[0], method, 10, out=out, augment=DIGITS, recover=options,
                training=Training(steps=300, seed=seed, device="cpu"), progress=False,
            )  # fmt: skip

        arms[method] = judged(make, pools, small(name, 300, DIGITS))
    between = zip(arms["cda"]["condensed"], arms["sre2l"]["condensed"], strict=True)
    return {"over sre2l": Figure([a - b for a, b in between], "points"),
            "over random with the same labels": Figure(gain(arms["cda"]), "points")}  # fmt: skip
