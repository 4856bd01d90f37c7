"""Does a teacher help a small upscaler? The same student, steps and patches, with and without.

    python -m benchmarks.sr.distillation --out runs/sr-distillation   # table, bars, verdict
    python -m benchmarks sr distillation                              # the same, recorded

The first form keeps each arm and seed in the folder, so that it can be interrupted and continued.

Student: 32 channels, 4 blocks, bicubic skip, x2. Teacher: the authors' IMDN x2. Photographs: T91,
test: Set5, PSNR of Y after the last step, so that nothing is chosen on the test set. Arms of one
seed share initial weights and patches; a gain is the mean of their differences over seeds, and is
called one only when it is more than two standard errors.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from rich.console import Console

from potstill.core import Training, atomic, locate, seed_all
from potstill.core.measure.bench import Figure, benchmark
from potstill.core.measure.report import Column, Report
from potstill.sr import IMDN, TRAINING, Pair, Terms, degrade, load_model, read_image, train
from potstill.sr.evaluation import evaluate, find_set, mean
from potstill.sr.images import find_photographs

SEEDS = 3
PLAIN = "photographs only"
RECIPE = replace(TRAINING, steps=400, batch=8, lr=2e-3, ema=0.0, device="cpu")
ARMS = {
    PLAIN: Terms(),
    "output": Terms(task=0.5, output=0.5),
    "output + affinity (FAKD)": Terms(task=0.5, output=0.5, affinity=1.0),
    "output + wavelet": Terms(task=0.5, output=0.5, wavelet=0.5),
}
DATA = ("sr/T91", "sr/Set5", "sr/safetensors")


def photographs() -> list[Pair]:
    return degrade([read_image(p).rgb8() for p in find_photographs(locate("sr/T91"))], scale=2)


def arm(terms: Terms, training: Training, pairs: list[Pair], label: str) -> dict[str, float]:
    """Train one student and measure it."""
    seed_all("student", training.seed)
    student = IMDN(2, channels=32, blocks=4, global_skip="bicubic")
    torch.nn.init.zeros_(student.upsampler.weight)  # so that it starts as bicubic
    teacher = None
    if terms.task < 1:
        teacher = load_model(locate("sr/safetensors/IMDN_x2.safetensors"))
    started = time.process_time()
    train(student, pairs, training, terms=terms, teacher=teacher, patch=24, progress=label)
    seconds = time.process_time() - started
    return {"psnr": mean(evaluate(student, find_set("Set5"))).ours.psnr, "seconds": seconds}


def measure(
    folder: Path | None = None, seeds: int = SEEDS, training: Training = RECIPE
) -> dict[str, list[dict[str, float]]]:
    """Every arm with every seed; what ``folder`` has already is not trained again."""
    pairs = photographs()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for seed in range(seeds):
        for name, terms in ARMS.items():
            kept = folder and folder / f"{name.split(' (')[0].replace(' ', '-')}-{seed}.json"
            if kept and kept.exists():
                found[name].append(json.loads(kept.read_text()))
                continue
            made = arm(terms, replace(training, seed=seed), pairs, f"{name}, seed {seed}")
            found[name].append(made)
            if kept:
                with atomic(kept) as temporary:
                    temporary.write_text(json.dumps(made))
    return found


def gains(found: dict[str, list[dict[str, float]]], name: str) -> list[float]:
    """Differences to the plain arm, seed by seed, in dB."""
    return [a["psnr"] - b["psnr"] for a, b in zip(found[name], found[PLAIN], strict=True)]


def standard_error(values: list[float]) -> float:
    """Of the mean; without a second seed nothing is known."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("inf")


def verdict(differences: list[float]) -> str:
    """ "gain", "loss" or "no gain", for at least three seeds."""
    middle, error = fmean(differences), standard_error(differences)
    if len(differences) < 3 or abs(middle) <= 2 * error:
        return "no gain"
    return "gain" if middle > 0 else "loss"


@benchmark(data=DATA, budget=1500, threads=1)
def distillation(quick: bool) -> dict[str, Figure]:
    """PSNR on Set5 x2 of a small student after equal steps, with and without a teacher."""
    found = measure(seeds=1, training=replace(RECIPE, steps=3)) if quick else measure()
    figures = {name: Figure([run["psnr"] for run in runs], "dB") for name, runs in found.items()}
    for name in list(ARMS)[1:]:
        figures[f"gain of {name}"] = Figure(gains(found, name), "dB")
    return figures


def report(found: dict[str, list[dict[str, float]]]) -> Report:
    """Table, bars, and the verdict in words."""
    columns = {
        "psnr": Column("dB", best="max", digits=4),
        "gain": Column("dB", digits=2),
        "error": Column("dB, standard error of the gain", digits=2),
        "verdict": Column(),
        "seconds": Column("CPU s", digits=3),
    }
    count = len(found[PLAIN])
    page = Report("Distilling IMDN", columns=columns, label="terms", seed=f"0-{count - 1}")
    said = []
    for name, runs in found.items():
        cells: dict[str, object] = {}
        if name != PLAIN:
            differences = gains(found, name)
            word = verdict(differences)
            cells = {
                "gain": fmean(differences),
                "error": standard_error(differences),
                "verdict": word,
            }
            said.append(f"{name}: {word}")
        psnr, seconds = ([run[key] for run in runs] for key in ("psnr", "seconds"))
        page.add(name, psnr=psnr, seconds=seconds, **cells)  # type: ignore[arg-type]
    page.summary = (
        f"Set5 x2 after {RECIPE.steps} steps, {count} seeds. {'; '.join(said)}. A gain is more "
        "than two standard errors of the differences between arms of one seed."
    )
    page.bars("psnr", "PSNR of Y on Set5 x2 after equal steps")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    page = report(measure(options.out, options.seeds))
    page.show()
    Console().print(page.summary)
    page.save(options.out)


if __name__ == "__main__":
    main()
