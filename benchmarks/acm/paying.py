"""Never slower: models fitted to a time, against narrow dense ones and the same k for all tokens.

    python -m benchmarks.acm.paying --out runs/paying                  # all tasks: tables and plots
    python -m benchmarks acm never-slower wide-layers empty-canvas --check

For each batch size the curve of narrow dense models (cut from the teacher, trained as long) is
measured; then one model after phases 1 and 2 is fitted (`fit_time`) to each of their times, and its
learners are fine-tuned as long. "On or left of the curve" is judged at the time that the fitted
model takes: no narrow or dense model that is as fast may be more accurate, but for noise. Times are
taken in turns; error bars are their 20th to 80th percentile, and the standard error of accuracy
over seeds, or of the test set where there is one seed.

Where gating has a chance: layers of ViT-S's width on 96-pixel Imagenette, and uneven images, small
pictures somewhere on a large empty canvas. Run it on an idle machine: ten minutes a seed and task
for width 96 on one core, hours for the wide one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.acm.learning import LEARNERS, TASKS, Study, Task, smoothed
from potstill.acm import Images, acms, finetune, fit_time, plots, predict, record_gates, share
from potstill.acm.analysis import Ratio, in_turns, ratio
from potstill.core import accuracy, atomic, generator
from potstill.core.measure.bench import Figure, at_least, at_most, benchmark
from potstill.core.measure.report import Column, Report

BATCHES = (1, 8, 64)


@dataclass(frozen=True)
class Canvas(Task):
    """Images of a task at a random place of a black canvas that is twice as high and as wide."""

    def images(self) -> tuple[Images, Images]:
        train, test = super().images()
        return self._placed(train), self._placed(test)

    def _placed(self, images: Images) -> Images:
        side = images.pixels.shape[-1]
        places = torch.randint(0, side + 1, (len(images), 2), generator=generator("canvas", 0))
        pixels = torch.zeros(len(images), 3, 2 * side, 2 * side, dtype=torch.uint8)
        for whole, part, (down, right) in zip(pixels, images.pixels, places.tolist(), strict=True):
            whole[:, down : down + side, right : right + side] = part
        return replace(images, pixels=pixels)


SMALL = TASKS["cifar10"].options
SETTINGS: dict[str, Task] = {
    "cifar10": TASKS["cifar10"],
    "wide": replace(
        TASKS["imagenette"],
        options={**TASKS["imagenette"].options, "embed_dim": 384, "depth": 6, "num_heads": 6},
    ),
    "canvas": Canvas(
        "cifar10-canvas", "vision/cifar10_10k.zip", "test", {**SMALL, "img_size": 64}, (3, 1, 3),
        teacher_epochs=12,
    ),
}  # fmt: skip


class Fitted:
    """Arms of one task and seed, and what they take and reach at one batch size."""

    def __init__(self, study: Study, batch: int) -> None:
        self.study, self.batch = study, batch
        self.images = next(iter(study.test.batches(batch)))[0]
        self.arms: dict[str, tuple[str, nn.Module]] = {}

    def measure(self) -> dict[str, dict[str, Any]]:
        """Rows by arm: family, top-1 in percent, milliseconds, their spread, share of gates."""
        study = self.study
        widths = range(1, LEARNERS) if not study.quick else (1,)
        self.add("dense", "dense longer", study.get("dense longer", study.dense_longer))
        for k in widths:
            name = f"{k / LEARNERS:g}"
            narrow = study.get(f"narrow {name}", partial(study.narrow, k))
            self.add("narrow", f"narrow {name}", narrow)
            same = study.get(f"same k {name}", partial(study.same_k, k))
            self.add("same k", f"same k {name}", same)
        goals = {name: self.times()[name].median for name in self.arms if name[:4] != "same"}
        for name, seconds in goals.items():
            self.add("fitted", f"fitted to {name}", self.fitted(1e3 * seconds))
        times = self.times()
        return {name: self.row(name, times) for name in self.arms}

    def add(self, family: str, name: str, model: nn.Module) -> None:
        self.arms[name] = family, model.eval()

    def times(self) -> dict[str, Any]:
        with torch.inference_mode():
            calls = {name: partial(model, self.images) for name, (_, model) in self.arms.items()}
            return in_turns(calls, 3 if self.study.quick else 21)

    def fitted(self, milliseconds: float) -> nn.Module:
        """Phases 1 and 2, the choice for this time, and phase 3 in the chosen modes."""
        study, rounds = self.study, 1 if self.study.quick else 9
        model = study.get("phase 2", study.after_phase_2)
        some = study.train.take(torch.arange(0, len(study.train), max(1, len(study.train) // 128)))
        fit_time(model, some.batches(32), milliseconds, batch=self.batch, rounds=rounds)
        with torch.no_grad(), record_gates(model.eval()) as readings:
            model(next(iter(some.batches(128)))[0])
        budget = min(1.0, max(0.01, float(share(readings).mean())))
        options = study._options("3", study.task.epochs[2])
        finetune(model, study.draws("phase 3"), budget=budget, task=smoothed, lr=5e-4, **options)
        return model

    def row(self, name: str, times: dict[str, Any]) -> dict[str, Any]:
        family, model = self.arms[name]
        logits, labels = predict(model, self.study.test.batches())
        assert labels is not None
        against: Ratio = ratio(times[name], times["dense longer"])
        gated = [acm.mode in ("gated", "image") for acm in acms(model).values()]
        return {
            "family": family, "top1": 100 * accuracy(logits, labels), "ratio": against.median,
            "low": against.low, "high": against.high, "ms": 1e3 * times[name].median,
            "gates": statistics.mean(gated) if gated else 0.0, "images": len(labels),
        }  # fmt: skip


def behind(rows: dict[str, dict[str, Any]]) -> float:
    """Points by which the worst fitted model is below the narrow ones that are as fast."""
    rivals = [row for row in rows.values() if row["family"] in ("narrow", "dense")]
    gaps = []
    for row in (row for row in rows.values() if row["family"] == "fitted"):
        able = [rival["top1"] for rival in rivals if rival["ratio"] <= row["ratio"]]
        gaps.append(max(able, default=row["top1"]) - row["top1"])
    return max(gaps)


def slowest(rows: dict[str, dict[str, Any]]) -> float:
    """Time of the slowest fitted model over that of the dense one."""
    return max(row["ratio"] for row in rows.values() if row["family"] == "fitted")


def found(name: str, seeds: int, quick: bool, out: Path | None) -> list[dict[int, Any]]:
    """Rows by batch size, for each seed; kept in ``out``."""
    every = []
    for seed in range(seeds):
        path = out and out / f"{name}-{seed}.json"
        if path is None or not path.exists():
            study = Study(SETTINGS[name], seed, out, quick)
            rows = {batch: Fitted(study, batch).measure() for batch in BATCHES}
            if path is None:
                every.append(rows)
                continue
            with atomic(path) as temporary:
                temporary.write_text(json.dumps(rows, indent=1))
        every.append({int(batch): rows for batch, rows in json.loads(path.read_text()).items()})
    return every


def figures(name: str, seeds: int, quick: bool) -> dict[str, Figure]:
    """Points behind the narrow curve, time over dense and share of gates, by batch size."""
    every, figures = found(name, 1 if quick else seeds, quick, None), {}
    for batch in BATCHES:
        rows = [one[batch] for one in every]
        fitted = [[r for r in one.values() if r["family"] == "fitted"] for one in rows]
        gates = [statistics.mean(r["gates"] for r in some) for some in fitted]
        figures[f"behind_narrow_{batch}"] = Figure([behind(one) for one in rows], "points")
        figures[f"over_dense_{batch}"] = Figure([slowest(o) for o in rows], "x", timed=True)
        figures[f"gated_modules_{batch}"] = Figure(gates)
    return figures


CLAIMS = {
    f"{figure}_{batch}": at_most(bound, f"issue 20: {clause}, batch {batch}")
    for batch in BATCHES
    for figure, bound, clause in (
        ("behind_narrow", 1.6, "on or left of narrow dense, within a standard error"),
        ("over_dense", 1.02, "never slower than dense, within 2 % of the clock"),
    )
}


@benchmark(data="vision/cifar10_10k.zip", budget=3600, threads=1, targets=CLAIMS)
def never_slower(quick: bool) -> dict[str, Figure]:
    """Fitted to times at batch 1, 8 and 64, width 96 on CIFAR-10, three seeds."""
    return figures("cifar10", 3, quick)


PAYS = {f"gated_modules_{batch}": at_least(0.01, "issue 20: gating pays") for batch in (8, 64)}


@benchmark(data="vision/imagenette_96.zip", budget=4 * 3600, threads=1, targets={**CLAIMS, **PAYS})
def wide_layers(quick: bool) -> dict[str, Figure]:
    """The same with layers of ViT-S's width on 96-pixel Imagenette: do gates pay there?"""
    return figures("wide", 3, quick)


@benchmark(data="vision/cifar10_10k.zip", budget=2 * 3600, threads=1, targets={**CLAIMS, **PAYS})
def empty_canvas(quick: bool) -> dict[str, Figure]:
    """The same on uneven images, pictures on an empty canvas: do gates pay there?"""
    return figures("canvas", 3, quick)


def page(name: str, every: list[dict[int, Any]], quick: bool) -> Report:
    """Accuracy against milliseconds over the dense model's, one plot a batch size."""
    note = "Smoke run, no claims. " if quick else ""
    report = Report(
        f"Fitted to a time: {name}", summary=f"{note}{len(every)} seed(s).", label="model",
        columns={"top1": Column("%", best="max"), "ms": Column(), "ratio": Column(digits=3),
                 "gates": Column(digits=2)},
    )  # fmt: skip
    for batch in BATCHES:
        arms = [one[batch] for one in every]
        families: dict[str, list[tuple[float, ...]]] = {}
        for arm, first in arms[0].items():
            rows = [one[arm] for one in arms]
            values = {key: [row[key] for row in rows] for key in ("top1", "ms", "ratio", "gates")}
            report.add(f"{arm}, batch {batch}", **values)
            middle = [statistics.mean(row[key] for row in rows) for key in ("ratio", "low", "high")]
            top = values["top1"]
            share = top[0] / 100
            error = (
                statistics.stdev(top) / len(top) ** 0.5 if len(top) > 1
                else 100 * (share * (1 - share) / first["images"]) ** 0.5
            )  # fmt: skip
            point = (*middle, statistics.mean(top), error)
            families.setdefault(first["family"], []).append(point)
        report.plot(
            partial(plots.draw_curves, families=families, x="time / time of the dense model",
                    y="top-1 accuracy [%]"), f"Accuracy against time, batch {batch}",
        )  # fmt: skip
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/acm-paying"))
    parser.add_argument("--task", choices=[*SETTINGS, "all"], default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for name in SETTINGS if options.task == "all" else [options.task]:
        report = page(name, found(name, options.seeds, options.quick, options.out), options.quick)
        report.show()
        print("wrote", report.save(options.out / name))


if __name__ == "__main__":
    main()
