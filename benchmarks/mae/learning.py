"""What masked distillation buys on CIFAR10-10 (10 000 / 2 000 images), against its honest controls.

    python -m benchmarks.mae.learning --out runs/learning      # table, curves, ratio sweep
    python -m benchmarks mae learning masking-ratio --check    # the same, recorded and judged

The first form keeps the curve of each arm and seed in the folder, so that it can be interrupted
and continued. About 25 minutes on one core.

Setting: timm ViT, patch 8 (16 patches), student dim 64 depth 4, teacher `tiny_vit_cifar10` (dim 96
depth 4, 45.95 %), batch 128, AdamW 2e-3 cosine, label smoothing .1, shift and flip. Time is steps
times the CPU time of a step, with one thread. Steps of all kinds are timed in turns, and only their
ratio to a step from scratch in the same turn counts: arms that are timed one after the other see
another machine each. A control counts as "at equal time" when it had at least as much time as the
arm that it is compared with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from timm.models.vision_transformer import VisionTransformer

from potstill.core import Distiller, Frozen, Losses, Objective, atomic, cosine, fit, locate
from potstill.core.criteria import kd
from potstill.core.images import CIFAR10, ImageSet, ResidentImages
from potstill.core.measure.bench import Figure as BenchFigure
from potstill.core.measure.bench import at_least, benchmark
from potstill.core.measure.report import Column, Report
from potstill.mae import (
    Classification,
    MaskedAutoencoder,
    MaskedToMasked,
    RandomMasking,
    adamw,
    plots,
    top1,
)

BATCH, LEARNING_RATE, GOAL = 128, 2e-3, 46.0


def vit(width: int, heads: int) -> VisionTransformer:
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=width,
        depth=4,
        num_heads=heads,
        num_classes=10,
        global_pool="avg",
    )


def make_student(seed: int) -> VisionTransformer:
    torch.manual_seed(seed)
    return vit(64, 4)


def load_teacher() -> VisionTransformer:
    from safetensors.torch import load_file

    teacher = vit(96, 3)
    teacher.load_state_dict(load_file(locate("vision/tiny_vit_cifar10.safetensors")))
    return teacher.eval()


@dataclass
class Bench:
    """Data and teacher, read once."""

    train: ImageSet
    resident: ResidentImages
    images: torch.Tensor
    labels: torch.Tensor
    teacher: VisionTransformer

    @classmethod
    def load(cls, limit: int | None = None) -> Bench:
        archive = locate("vision/cifar10_10k.zip")
        train, test = (
            ImageSet(archive / "cifar10" / part, labels=True) for part in ("train", "test")
        )
        resident = ResidentImages.of(train, BATCH, CIFAR10)
        if limit is not None:  # every n-th image, so that classes stay balanced
            every = len(resident.images) // limit
            resident = ResidentImages(
                resident.images[::every], resident.targets[::every], BATCH, CIFAR10
            )
        held = ResidentImages.of(test, BATCH, CIFAR10)
        return cls(train, resident, held.normalized(held.images), held.targets, load_teacher())

    def batches(self, seed: int) -> ResidentImages:
        return ResidentImages(
            self.resident.images, self.resident.targets, BATCH, CIFAR10, seed=seed
        )


@dataclass
class Curve:
    """Accuracy after each epoch of supervised training, against CPU time spent so far."""

    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    pretraining: float = 0.0
    images_per_second: float = 0.0  # of the pre-training

    def reaches(self, goal: float) -> float | None:
        return next(
            (s for s, a in zip(self.seconds, self.accuracy, strict=True) if a >= goal), None
        )


class WithLogits(Distiller):
    """The control: ordinary logit distillation from the same teacher."""

    def forward(self, batch: Any, step: int) -> Losses:
        images, labels = batch
        logits = self.student(images)
        return self.objective(step, task=(logits, labels), logits=(logits, self.teacher(images)))


def scratch(bench: Bench, seed: int) -> Distiller:
    return Classification(make_student(seed))


def logits(bench: Bench, seed: int) -> Distiller:
    student = Classification(make_student(seed))
    terms = {
        "task": (0.5, student.objective.module("task")),
        "logits": (0.5, lambda z_s, z_t: kd(z_s, z_t, T=2.0)),
    }
    return WithLogits(student.student, Objective(terms), Frozen(bench.teacher))


def masked(
    bench: Bench, seed: int, *, reconstruct: bool = True, align: bool = True, ratio: float = 0.75
) -> MaskedToMasked:
    decoder = {"depth": 1, "width": 64, "heads": 4} if reconstruct else None
    student = MaskedAutoencoder(make_student(seed), decoder, fixed_positions=True)
    return MaskedToMasked(student, bench.teacher if align else None, masking=RandomMasking(ratio))


KINDS: dict[str, Callable[[Bench, int], Any]] = {
    "scratch": scratch,
    "logit distillation": logits,
    "MAE only": partial(masked, align=False),
    "DMAE": masked,
    "alignment only": partial(masked, reconstruct=False),
    "DMAE 50% masked": partial(masked, ratio=0.5),
    "DMAE 90% masked": partial(masked, ratio=0.9),
}


def step_seconds(bench: Bench, turns: int = 25, steps: int = 4) -> dict[str, float]:
    """CPU time of a step of each kind: medians of ratios within a turn, times that from scratch."""
    batch = bench.batches(0)(0, 0, 1)

    def stepping(make: Callable[[Bench, int], Any]) -> Callable[[], float]:
        distiller = make(bench, 0).train()
        named = [(n, p) for n, p in distiller.named_parameters() if p.requires_grad]
        optimizer = adamw()(named, lr=1e-4)

        def run() -> float:
            start = time.process_time()
            for step in range(steps):
                distiller(batch, step).total.backward()
                optimizer.step()
                optimizer.zero_grad()
            return (time.process_time() - start) / steps

        run()  # warm
        return run

    running = {kind: stepping(make) for kind, make in KINDS.items()}
    rows = [{kind: run() for kind, run in running.items()} for _ in range(turns)]
    unit = statistics.median(row["scratch"] for row in rows)
    return {
        kind: unit * statistics.median(row[kind] / row["scratch"] for row in rows) for kind in KINDS
    }


@dataclass(frozen=True)
class Arm:
    """So many epochs of a kind; with ``before``, as pre-training of so many from scratch."""

    kind: str
    epochs: int
    before: int = 0

    def run(self, bench: Bench, seed: int, costs: Mapping[str, float]) -> Curve:
        distiller, curve = KINDS[self.kind](bench, seed), Curve()
        if not self.before:
            return supervised(bench, distiller, self.epochs, seed, costs[self.kind], curve)
        batches = bench.batches(seed + 1000)
        fit(
            distiller,
            batches,
            steps=self.before * len(batches),
            lr=LEARNING_RATE,
            optimizer=adamw(),
            schedule=cosine(warmup=0.05),
            seed=seed,
            progress=False,
        )
        curve.pretraining = self.before * len(batches) * costs[self.kind]
        curve.images_per_second = BATCH / costs[self.kind]
        tuned = Classification(distiller.export_student())
        return supervised(bench, tuned, self.epochs, seed, costs["scratch"], curve)


def supervised(
    bench: Bench, distiller: Distiller, epochs: int, seed: int, cost: float, curve: Curve
) -> Curve:
    batches = bench.batches(seed)

    def after_each_epoch(row: dict[str, float], share: float) -> None:
        done = int(row["step"]) + 1
        if done % len(batches) == 0:
            curve.seconds.append(curve.pretraining + done * cost)
            curve.accuracy.append(top1(distiller.student, bench.images, bench.labels))

    fit(
        distiller,
        batches,
        steps=epochs * len(batches),
        lr=LEARNING_RATE,
        optimizer=adamw(betas=(0.9, 0.999)),
        schedule=cosine(warmup=0.05),
        seed=seed,
        progress=after_each_epoch,
    )
    return curve


Curves = dict[str, list[Curve]]  # by arm, one per seed

SCRATCH, LOGITS = (5, 8, 10, 15), (5, 7, 10)
ARMS: dict[str, Arm] = {
    **{f"scratch {n}": Arm("scratch", n) for n in SCRATCH},
    **{f"logit distillation {n}": Arm("logit distillation", n) for n in LOGITS},
    **{f"{kind} 5+5": Arm(kind, 5, 5) for kind in ("MAE only", "DMAE", "alignment only")},
}
RATIOS = (0.5, 0.75, 0.9)
SWEEP: dict[str, Arm] = {
    "DMAE 50% masked": Arm("DMAE 50% masked", 5, 5),
    "DMAE 5+5": Arm("DMAE", 5, 5),
    "DMAE 90% masked": Arm("DMAE 90% masked", 5, 5),
}
OURS = ("DMAE 5+5", "alignment only 5+5")


def final(curves: Sequence[Curve]) -> float:
    return statistics.mean(curve.accuracy[-1] for curve in curves)


def spent(curves: Sequence[Curve]) -> float:
    return statistics.mean(curve.seconds[-1] for curve in curves)


def control(curves: Curves, kind: str, seconds: float) -> str:
    """The cheapest arm of ``kind`` that had at least ``seconds``; the longest if none had."""
    arms = sorted(
        (name for name in curves if name.startswith(kind)), key=lambda n: spent(curves[n])
    )
    return next((name for name in arms if spent(curves[name]) >= seconds), arms[-1])


def within(curves: Curves, kind: str, seconds: float) -> float:
    """The best that any arm of ``kind`` shows after any epoch within ``seconds``.

    Harder than it is fair, since it is chosen by test accuracy; reported, without a target.
    """
    points = [
        (statistics.mean(times), statistics.mean(accuracies))
        for name, runs in curves.items()
        if name.startswith(kind)
        for times, accuracies in zip(
            zip(*(curve.seconds for curve in runs), strict=True),
            zip(*(curve.accuracy for curve in runs), strict=True),
            strict=True,
        )
    ]
    return max(accuracy for time_spent, accuracy in points if time_spent <= seconds)


def gains(curves: Curves) -> dict[str, float]:
    """Points won by each of our arms, by the names of the declared targets."""
    result = {}
    for short, name in zip(("dmae", "align"), OURS, strict=True):
        ours, seconds = final(curves[name]), spent(curves[name])
        result[f"{short} over scratch, equal epochs"] = ours - final(curves["scratch 5"])
        result[f"{short} over MAE only"] = ours - final(curves["MAE only 5+5"])
        for kind in ("scratch", "logit distillation"):
            other = control(curves, kind, seconds)
            result[f"{short} over {kind}, equal time"] = ours - final(curves[other])
            best = within(curves, kind, seconds)
            result[f"{short} over {kind}, any epoch in that time"] = ours - best
    return result


def table(curves: Curves) -> Report:
    report = Report(
        "Masked distillation on CIFAR10-10 (10 000 / 2 000)",
        columns={
            "CPU time": Column("s", digits=3),
            "top-1": Column("%", best="max"),
            f"time to {GOAL:g} %": Column(),
        },
        label="arm",
        data="cifar10_10k.zip",
    )
    for name, runs in curves.items():
        reached = [curve.reaches(GOAL) for curve in runs]
        known = [seconds for seconds in reached if seconds is not None]
        goal = f"{statistics.mean(known):.0f} s" if len(known) == len(runs) else "not by all"
        report.add(
            name,
            **{
                "CPU time": [curve.seconds[-1] for curve in runs],
                "top-1": [curve.accuracy[-1] for curve in runs],
                f"time to {GOAL:g} %": goal if known else "never",
            },
        )
    return report


def draw_curves(curves: Curves) -> Figure:
    """Accuracy against CPU time; pre-training is the silent stretch before a curve begins."""
    figure = Figure(figsize=(8.5, 5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    kinds = {"scratch": "#8b949e", "logit": "#c2410c", "MAE": "#9a6700"}
    colors = {**kinds, "DMAE": "#1f6feb", "alignment": "#1a7f37"}
    styles = ("-", "--", "-.", ":")
    seen: dict[str, int] = {}
    for name, runs in curves.items():
        kind = name.split()[0]
        style = styles[seen.setdefault(kind, 0) % len(styles)]
        seen[kind] += 1
        x = [statistics.mean(values) for values in zip(*(c.seconds for c in runs), strict=True)]
        y = [statistics.mean(values) for values in zip(*(c.accuracy for c in runs), strict=True)]
        axes.plot(x, y, style, marker="o", markersize=3, color=colors[kind], label=name)
    axes.axhline(GOAL, color="#57606a", linewidth=0.8)
    axes.set(xlabel="CPU time, pre-training included (s)", ylabel="top-1 on 2 000 images (%)")
    axes.set_title(f"CIFAR10-10 subset, mean of {len(runs)} seeds", loc="left")
    axes.legend(fontsize=8, ncols=2)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def collect(
    arms: Mapping[str, Arm], seeds: Sequence[int], bench: Bench, keep: Path | None = None
) -> Curves:
    """Run all arms; with ``keep`` finished ones are read from that file, and new ones added."""
    stored = json.loads(keep.read_text()) if keep is not None and keep.exists() else {}
    curves: Curves = {name: [] for name in arms}
    console = Console(stderr=True)
    if "seconds of a step" not in stored:
        stored["seconds of a step"] = step_seconds(bench)
    costs = stored["seconds of a step"]
    for seed in seeds:
        for name, arm in arms.items():
            key = f"{name} / {seed}"
            if key not in stored:
                stored[key] = asdict(arm.run(bench, seed, costs))
                if keep is not None:
                    with atomic(keep) as temporary:
                        temporary.write_text(json.dumps(stored, indent=1))
            curve = Curve(**stored[key])
            console.print(f"seed {seed}  {name:22}  {curve.seconds[-1]:6.1f} s  "
                          f"{curve.accuracy[-1]:.2f} %")  # fmt: skip
            curves[name].append(curve)
    return curves


@benchmark(
    data=("vision/cifar10_10k.zip", "vision/tiny_vit_cifar10.safetensors"), threads=1, budget=60
)
def step_cost(quick: bool) -> dict[str, BenchFigure]:
    """CIFAR10-10 subset: CPU time of a step of each kind, from ratios of interleaved turns."""
    costs = step_seconds(Bench.load(1280 if quick else None), 2 if quick else 25)
    return {kind: BenchFigure(1000 * seconds, "ms") for kind, seconds in costs.items()}


EQUAL, TIME = "issue 6: equal fine-tuning epochs", "issue 6: equal CPU time"


@benchmark(
    data=("vision/cifar10_10k.zip", "vision/tiny_vit_cifar10.safetensors"),
    threads=1,
    budget=1500,
    targets={
        f"{arm} over {control}": at_least(points, source)
        for arm in ("dmae", "align")
        for control, points, source in (
            ("scratch, equal epochs", 7, EQUAL),
            ("MAE only", 5, EQUAL),
            ("scratch, equal time", 3, TIME),
            ("logit distillation, equal time", 2, TIME),
        )
    },
)
def learning(quick: bool) -> dict[str, BenchFigure]:
    """CIFAR10-10 subset: DMAE and alignment only against scratch, logits and MAE (points)."""
    arms = {name: ARMS[name] for name in ARMS}
    if quick:
        short = {"scratch 5", "logit distillation 5", "MAE only 5+5", *OURS}
        arms = {name: arm for name, arm in arms.items() if name in short}
    curves = collect(arms, (0,) if quick else (0, 1, 2), Bench.load(1280 if quick else None))
    figures = {name: BenchFigure(value, "points") for name, value in gains(curves).items()}
    for name, runs in curves.items():
        figures[f"top-1: {name}"] = BenchFigure([c.accuracy[-1] for c in runs], "%")
        figures[f"CPU time: {name}"] = BenchFigure([c.seconds[-1] for c in runs], "s")
        reached = [c.reaches(GOAL) for c in runs]
        if None not in reached:
            figures[f"CPU time to {GOAL:g} %: {name}"] = BenchFigure(reached, "s")
    return figures


@benchmark(
    data=("vision/cifar10_10k.zip", "vision/tiny_vit_cifar10.safetensors"), threads=1, budget=500
)
def masking_ratio(quick: bool) -> dict[str, BenchFigure]:
    """CIFAR10-10 subset: DMAE at masking ratios 50, 75 and 90 %."""
    bench = Bench.load(1280 if quick else None)
    figures = {}
    sweep = collect(SWEEP, (0,) if quick else (0, 1, 2), bench)
    for ratio, runs in zip(RATIOS, sweep.values(), strict=True):
        figures[f"top-1: {ratio:.0%}"] = BenchFigure([c.accuracy[-1] for c in runs], "%")
        figures[f"pre-training: {ratio:.0%}"] = BenchFigure(
            [c.images_per_second for c in runs], "images per CPU second"
        )
    return figures


SIZES = (1280, 2560, 5120, 10_000)  # training images
RANGE: dict[str, Arm] = {
    "scratch": Arm("scratch", 8),
    "logit distillation": Arm("logit distillation", 5),
    **{f"{kind}, {before} + 5": Arm(kind, 5, before)
       for kind in ("DMAE", "alignment only") for before in (5, 20)},
}  # fmt: skip


@benchmark(
    data=("vision/cifar10_10k.zip", "vision/tiny_vit_cifar10.safetensors"), threads=1, budget=2400
)
def honest_range(quick: bool) -> dict[str, BenchFigure]:
    """CIFAR10-10 subset: accuracy by number of images and of pre-training epochs, with controls."""
    figures = {}
    for size in SIZES[:1] if quick else SIZES:
        arms = dict(list(RANGE.items())[:3]) if quick else RANGE
        for name, runs in collect(arms, (0,) if quick else (0, 1, 2), Bench.load(size)).items():
            figures[f"top-1: {name}, {size} images"] = BenchFigure(
                [c.accuracy[-1] for c in runs], "%"
            )
            figures[f"CPU time: {name}, {size} images"] = BenchFigure(
                [c.seconds[-1] for c in runs], "s"
            )
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of curves and pictures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    bench, keep = Bench.load(), options.out / "curves.json"
    curves = collect(ARMS, options.seeds, bench, keep)
    sweep = collect(SWEEP, options.seeds[:1], bench, keep)
    report = table(curves)
    picture = draw_curves(curves)
    report.figure(picture, "Accuracy against CPU time", "Curves")
    points = [
        {"arm": name, "seed": seed, "epoch": epoch, "seconds": seconds, "top1": accuracy}
        for name, runs in curves.items()
        for seed, curve in zip(options.seeds, runs, strict=True)
        for epoch, (seconds, accuracy) in enumerate(
            zip(curve.seconds, curve.accuracy, strict=True), start=1
        )
    ]
    plots.save(picture, options.out / "curves.png", points)
    rows = [
        (ratio, [c.accuracy[-1] for c in runs], [c.images_per_second for c in runs])
        for ratio, runs in zip(RATIOS, sweep.values(), strict=True)
    ]
    picture = plots.masking_ratio_curve(rows)
    report.figure(picture, "Accuracy and speed by masking ratio", "Masking ratio")
    points = [
        {"ratio": ratio, "top1": top, "images_per_second": speed}
        for ratio, tops, speeds in rows
        for top, speed in zip(tops, speeds, strict=True)
    ]
    plots.save(picture, options.out / "masking_ratio.png", points)
    report.table(
        ["comparison", "points"],
        [(name, f"{value:+.2f}") for name, value in gains(curves).items()],
        "Gains of the mean over seeds",
    )
    report.show()
    for name, value in gains(curves).items():
        Console().print(f"{name:45} {value:+.2f} points")
    report.save(options.out)


if __name__ == "__main__":
    main()
