"""Criteria and schemes side by side on a CIFAR-10 subset (10 000 / 2 000 images).

    python -m benchmarks.core.cifar --out runs/cifar     # table and plot; can be interrupted
    python -m benchmarks core cifar --check              # the same, recorded

One teacher (two in the ensemble), one student, the same steps, seeds, optimizer and augmentation
for every arm; weights and temperatures are the ones their authors give for CIFAR where they do.
Small networks, few epochs, one data set: the table says what happened here and nothing more. Time
is CPU time of training with one thread. About 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from potstill.core import (
    Distiller,
    Objective,
    accuracy,
    atomic,
    cosine,
    ece,
    fit,
    locate,
    seed_all,
)
from potstill.core.criteria import Taid, dist, dkd, kd, pld, soft_ce
from potstill.core.images import CIFAR10, Images, load_images
from potstill.core.measure.bench import Figure as BenchFigure
from potstill.core.measure.bench import benchmark
from potstill.core.measure.report import Column, Report
from potstill.core.schemes import Ensemble, LogitDistiller, MixupDistiller

ARCHIVE = "vision/cifar10_10k.zip"
BATCH, LEARNING_RATE = 128, 2e-3
TEACHER_EPOCHS, STUDENT_EPOCHS = 12, 8
SEEDS = (0, 1, 2)


def network(width: int) -> nn.Sequential:
    """Three stages of two 3x3 convolutions, each halving the size."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in (width, 2 * width, 4 * width):
        for stride in (2, 1):
            layers += [nn.Conv2d(channels, stage, 3, stride, 1, bias=False)]
            layers += [nn.BatchNorm2d(stage), nn.ReLU()]
            channels = stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


@dataclass
class Data:
    """All images in memory."""

    train: Images
    test: Images

    @classmethod
    def load(cls, every: int = 1) -> Data:
        folder = locate(ARCHIVE) / "cifar10"
        parts = [load_images(folder / part, statistics=CIFAR10) for part in ("train", "test")]
        return cls(*(part.take(torch.arange(0, len(part), every)) for part in parts))

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return len(self.train) // BATCH


@dataclass
class Outcome:
    """Of one training."""

    accuracy: float
    ece: float
    seconds_per_epoch: float


def train(distiller: Distiller, data: Data, epochs: int, seed: int) -> Outcome:
    start = time.process_time()
    fit(
        distiller,
        data.train.draws(BATCH, seed),
        steps=epochs * data.steps,
        lr=LEARNING_RATE,
        optimizer=partial(torch.optim.AdamW, weight_decay=0.01),
        schedule=cosine(warmup=0.05),
        seed=seed,
        progress=False,
    )
    seconds = (time.process_time() - start) / epochs
    with torch.no_grad():
        logits = distiller.student.eval()(data.test.normalized(data.test.pixels))
    labels = data.test.labels
    return Outcome(accuracy(logits, labels), ece(logits, labels), seconds)


CE = F.cross_entropy
Arm = Callable[[nn.Module, "Teachers", int], Distiller]


class Teachers:
    """Trained when first asked for, with the seconds that took kept apart."""

    def __init__(self, data: Data, epochs: int) -> None:
        self.data, self.epochs = data, epochs
        self.models: list[nn.Module] = []
        self.outcomes: list[Outcome] = []

    def __getitem__(self, index: int) -> nn.Module:
        while len(self.models) <= index:
            seed = 100 + len(self.models)
            seed_all(seed)
            model = network(40)
            plain = LogitDistiller(model, Objective(task=(1.0, CE)))
            self.outcomes.append(train(plain, self.data, self.epochs, seed))
            self.models.append(model)
        return self.models[index]


def logits(**terms: tuple[float, Callable[..., Tensor]]) -> Arm:
    return lambda student, teachers, steps: LogitDistiller(student, Objective(terms), teachers[0])


ARMS: dict[str, Arm] = {
    "student alone": lambda student, teachers, steps: LogitDistiller(
        student, Objective(task=(1.0, CE))
    ),
    "kd": logits(task=(0.1, CE), kd=(0.9, partial(kd, T=4.0))),
    "dkd": logits(task=(1.0, CE), dkd=(1.0, partial(dkd, alpha=1.0, beta=2.0, T=4.0))),
    "dist": logits(task=(1.0, CE), dist=(1.0, partial(dist, beta=2.0, gamma=2.0, T=4.0))),
    "pld": logits(pld=(1.0, partial(pld, T=4.0))),
    "ensemble": lambda student, teachers, steps: LogitDistiller(
        student, Objective(soft=(1.0, soft_ce)), Ensemble([teachers[0], teachers[1]])
    ),
    "mixup-kd": lambda student, teachers, steps: MixupDistiller(
        student,
        Objective(task=(0.1, CE), kd=(0.9, partial(kd, T=4.0))),
        teachers[0],
        num_classes=10,
        share=0.5,
    ),
    "taid": lambda student, teachers, steps: LogitDistiller(
        student, Objective(taid=(1.0, Taid(steps))), teachers[0]
    ),
}


def collect(
    data: Data, seeds: Sequence[int], epochs: tuple[int, int], keep: Path | None = None
) -> tuple[dict[str, list[Outcome]], Teachers]:
    """Run all arms; with ``keep`` finished runs are read from that file, and new ones added."""
    stored = json.loads(keep.read_text()) if keep is not None and keep.exists() else {}
    teachers = Teachers(data, epochs[0])
    runs: dict[str, list[Outcome]] = {name: [] for name in ARMS}
    console = Console(stderr=True)
    for seed in seeds:
        for name, arm in ARMS.items():
            key = f"{name} / {seed}"
            if key not in stored:
                seed_all(seed)
                student = network(16)
                distiller = arm(student, teachers, epochs[1] * data.steps)
                stored[key] = asdict(train(distiller, data, epochs[1], seed))
                if keep is not None:
                    with atomic(keep) as path:
                        path.write_text(json.dumps(stored, indent=1))
            runs[name].append(Outcome(**stored[key]))
            console.print(f"seed {seed}  {name:14} {100 * runs[name][-1].accuracy:5.2f} %")
    return runs, teachers


def standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def picture(runs: dict[str, list[Outcome]]) -> Figure:
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(runs))
    for axes, pick, title in (
        (left, lambda o: 100 * o.accuracy, "accuracy on 2 000 images [%]"),
        (right, lambda o: 100 * o.ece, "expected calibration error, 15 bins [%]"),
    ):
        values = [[pick(outcome) for outcome in outcomes] for outcomes in runs.values()]
        means = [statistics.fmean(v) for v in values]
        errors = [standard_error(v) for v in values]
        axes.errorbar(means, rows, xerr=errors, fmt="o", color="C0", capsize=3, label="mean ± s.e.")
        for row, seeds in zip(rows, values, strict=True):
            axes.plot(seeds, [row] * len(seeds), "|", color="0.5", markersize=9)
        axes.axvline(means[0], color="0.8", linewidth=1, zorder=0)
        axes.set(title=title)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_yticks(list(rows), list(runs))
    left.invert_yaxis()
    return figure


def table(runs: dict[str, list[Outcome]]) -> Report:
    report = Report(
        "Distillation criteria on a CIFAR-10 subset",
        summary=f"{len(next(iter(runs.values())))} seeds, equal steps; mean ± standard error.",
        columns={
            "accuracy": Column("%", best="max"),
            "standard error": Column("points", digits=2),
            "calibration error": Column("%", best="min", digits=3),
            "time": Column("CPU s per epoch", digits=3),
        },
        seed=", ".join(map(str, SEEDS)),
        data=ARCHIVE,
        device="cpu",
    )
    for name, outcomes in runs.items():
        top = [100 * outcome.accuracy for outcome in outcomes]
        report.add(
            name,
            **{
                "accuracy": statistics.fmean(top),
                "standard error": standard_error(top),
                "calibration error": statistics.fmean(100 * o.ece for o in outcomes),
                "time": statistics.fmean(o.seconds_per_epoch for o in outcomes),
            },
        )
    report.figure(picture(runs), "Marks are seeds; the line is the student alone.", "Comparison")
    return report


@benchmark(data=(ARCHIVE,), threads=1, budget=1500)
def cifar(quick: bool) -> dict[str, BenchFigure]:
    """CIFAR-10 subset: accuracy, calibration and time of eight ways to train one student."""
    data = Data.load(every=10 if quick else 1)
    seeds, epochs = ((0,), (1, 1)) if quick else (SEEDS, (TEACHER_EPOCHS, STUDENT_EPOCHS))
    runs, teachers = collect(data, seeds, epochs)
    figures = {"accuracy: teacher": BenchFigure(100 * teachers.outcomes[0].accuracy, "%")}
    for name, outcomes in runs.items():
        figures[f"accuracy: {name}"] = BenchFigure([100 * o.accuracy for o in outcomes], "%")
        figures[f"calibration error: {name}"] = BenchFigure([100 * o.ece for o in outcomes], "%")
        figures[f"time: {name}"] = BenchFigure(
            [o.seconds_per_epoch for o in outcomes], "CPU s per epoch"
        )
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of results and pictures")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    runs, teachers = collect(
        Data.load(), options.seeds, (TEACHER_EPOCHS, STUDENT_EPOCHS), options.out / "runs.json"
    )
    report = table(runs)
    if teachers.outcomes:
        rows = [
            (f"teacher {i + 1}", f"{100 * o.accuracy:.2f}", f"{100 * o.ece:.2f}")
            for i, o in enumerate(teachers.outcomes)
        ]
        report.table(["", "accuracy [%]", "calibration error [%]"], rows, "Teachers")
    report.show()
    report.save(options.out)


if __name__ == "__main__":
    main()
