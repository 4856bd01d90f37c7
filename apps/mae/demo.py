"""Masked distillation in two minutes on one CPU core, as one page to look at.

    python apps/mae/demo.py --out runs/mae_demo            # CIFAR-10 subset below POTSTILL_DATA
    python apps/mae/demo.py --out runs/mae_demo --quick    # some seconds, to see that it works

A student of width 64 learns from a teacher of width 96: pre-training without labels on a quarter of
each image, then ordinary fine-tuning; beside it the same student from scratch. The page shows the
masks, what the decoder paints, how the blocks of both models resemble each other before and after,
where they disagree, and the accuracies with the time that each took.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from potstill.core.command import load
from potstill.core.measure.report import Column, Report
from potstill.core.store import root
from potstill.mae import (
    BlockMasking,
    Finetune,
    GridMasking,
    Pretrain,
    RandomMasking,
    finetune,
    inspect_run,
    pretrain,
    recipe,
)

CAPTIONS = {
    "reconstruction.png": "What the student saw, and what its decoder made of the rest.",
    "cka.png": "Similarity of blocks before and after; the squares are the aligned ones.",
    "alignment_error.png": "Where student and teacher disagree.",
}


def masks() -> Figure:
    """One draw of each masking at 75 %, on 14 x 14 patches."""
    figure = Figure(figsize=(8, 2.9), dpi=130, layout="constrained")
    kinds = (RandomMasking(0.75), BlockMasking(0.75, side=3), GridMasking(0.75))
    for axes, masking in zip(figure.subplots(1, 3), kinds, strict=True):
        plan = masking(1, (14, 14), generator=torch.Generator().manual_seed(0))
        axes.imshow(plan.mask.view(14, 14), cmap="Blues", vmin=-0.2, vmax=1.6)
        axes.set_title(type(masking).__name__, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def picture(path: Path) -> Figure:
    """A finished picture as a figure, for the page."""
    image = Image.open(path)
    figure = Figure(figsize=(image.width / 130, image.height / 130), dpi=130)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image)
    axes.axis("off")
    return figure


def timed(console: Console, title: str, job: Any, config: Any) -> tuple[dict[str, Any], float]:
    console.rule(title, align="left")
    start = time.process_time()
    summary = job(config)
    return summary, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mae_demo"))
    parser.add_argument("--quick", action="store_true", help="one epoch of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)

    before = load(Pretrain, recipe("cifar10_pretrain"))
    after = load(Finetune, recipe("cifar10_finetune"))
    changed: dict[str, Any] = {"device": "cpu"} | ({"epochs": 1} if options.quick else {})
    before, after = (
        dataclasses.replace(c, training=dataclasses.replace(c.training, **changed))
        for c in (before, after)
    )
    folder = options.out / "pretrain"
    before = dataclasses.replace(before, out=folder)
    distilled = dataclasses.replace(after, out=options.out / "distilled", init=str(folder))
    scratch = dataclasses.replace(
        after, out=options.out / "scratch", init="", encoder=before.student
    )

    _, pretraining = timed(console, "pre-training without labels", pretrain, before)
    tuned, tuning = timed(console, "fine-tuning", finetune, distilled)
    plain, alone = timed(console, "the same student from scratch", finetune, scratch)
    teacher = json.loads((root() / "vision/tiny_vit_cifar10.json").read_text())

    report = Report(
        "Masked distillation on CIFAR-10 (10 000 / 2 000 images)",
        summary="Student 64 wide, teacher 96 wide, both 4 blocks; three quarters hidden.",
        columns={"top-1": Column("%", best="max"), "CPU time": Column("s", digits=3)},
        label="model", seed=before.training.seed, data="cifar10_10k.zip", device="cpu",
    )  # fmt: skip
    report.add("teacher", **{"top-1": 100 * teacher["test_top1"]})
    report.add("student, distilled", **{"top-1": tuned["top1"], "CPU time": pretraining + tuning})
    report.add("student, from scratch", **{"top-1": plain["top1"], "CPU time": alone})
    report.figure(masks(), "Three ways to hide 75 % of the patches (dark).", "Masks")
    for path in inspect_run(folder, "", 5, 1000):
        report.figure(picture(path), CAPTIONS[path.name], path.stem.replace("_", " "))
    report.figure(picture(folder / "curves.png"), "Losses of pre-training.", "Curves")
    report.show()
    console.print(f"page: {report.save(options.out)}", markup=False)


if __name__ == "__main__":
    main()
