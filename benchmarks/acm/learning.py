"""Does adaptivity pay? Three phases on CIFAR-10 and 96-pixel Imagenette, against honest controls.

    python -m benchmarks.acm.learning --out runs/acm            # both tasks: table, plots, verdict
    python -m benchmarks acm cifar10 imagenette --check         # the same, recorded and judged

The first form keeps each arm in the folder, so that it can be interrupted and continued; about ten
minutes a seed on one core.

Arms, all from one dense teacher, MLPs only, N = 4 learners:

- ``gated``: phase 1, phase 2, phase 3 at the budget.
- ``calibrated``: the one trained for budget 0.5, tilted to another on training images.
- ``same k``: after the same phase 1, the first k learners for every token, fine-tuned as long.
- ``narrow``: a dense model with MLPs of that width, cut from the teacher's most important units,
  distilled module by module as long as phase 1 and fine-tuned as long as phase 3.
- ``dense``: the teacher, and the teacher fine-tuned as long.

Times are medians of interleaved blocks at one batch size, the gates included.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.acm import (
    acmize,
    acms,
    calibrate,
    deacmize,
    distill,
    finetune,
    predict,
    pretrain_gates,
    profile,
    save_pretrained,
    set_mode,
)
from potstill.core import (
    Distiller,
    Losses,
    Objective,
    accuracy,
    atomic,
    cosine,
    count_macs,
    fit,
    key,
    latency,
    locate,
)
from potstill.core.images import CIFAR10, IMAGENET, Images, ResidentImages, load_images
from potstill.core.measure.bench import Figure, at_least, at_most, benchmark
from potstill.core.measure.report import Column, Report
from potstill.core.store import sha256

LEARNERS = 4
WIDTHS = (2, 1)  # budgets 0.25 and 0.5


@dataclass(frozen=True)
class Task:
    """Images, a dense teacher, and how long each phase takes."""

    name: str
    archive: str
    test: str
    options: dict[str, Any]
    epochs: tuple[int, int, int]
    teacher_epochs: int = 0
    batch: int = 128

    def images(self) -> tuple[Images, Images]:
        name = "cifar10" if "cifar10" in self.archive else "imagenette"
        statistics = CIFAR10 if name == "cifar10" else IMAGENET
        folder = locate(self.archive)
        return (
            load_images(folder / name / "train", statistics=statistics),
            load_images(folder / name / self.test, statistics=statistics),
        )

    def dense(self) -> Any:
        model: Any = timm.create_model("vit_tiny_patch16_224", **self.options)
        model.acm_origin = ("vit_tiny_patch16_224", self.options)
        return model


SMALL = {"embed_dim": 96, "depth": 4, "num_heads": 3, "num_classes": 10, "global_pool": "avg"}
TASKS = {
    "cifar10": Task(
        "cifar10", "vision/cifar10_10k.zip", "test",
        {"img_size": 32, "patch_size": 8, **SMALL}, (3, 1, 3),
    ),
    "imagenette": Task(
        "imagenette", "vision/imagenette_96.zip", "val",
        {"img_size": 96, "patch_size": 12, **SMALL}, (10, 4, 10),
        teacher_epochs=60, batch=64,
    ),
}  # fmt: skip


class Supervised(Distiller):
    """Cross-entropy with smoothing: the teacher, and what is fine-tuned without gates."""

    def forward(self, batch: Any, step: int) -> Losses:
        images, labels = batch
        return self.objective(step, task=(self.student(images), labels))


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


class Study:
    """One task and seed; arms are trained once and kept in ``folder``."""

    def __init__(self, task: Task, seed: int, folder: Path | None, quick: bool = False) -> None:
        self.task, self.seed, self.folder, self.quick = task, seed, folder, quick
        self.train, self.test = task.images()
        if quick:
            self.train = self.train.take(torch.arange(0, len(self.train), 10))
            self.test = self.test.take(torch.arange(0, len(self.test), 10))
        self.batch = min(task.batch, len(self.train))
        self.epoch = max(1, len(self.train) // self.batch)
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.teacher = self._teacher()

    def steps(self, epochs: int) -> int:
        return self.epoch * (1 if self.quick else epochs)

    def draws(self, name: str) -> ResidentImages:
        # The CIFAR-10 teacher does not know shifts: moved by 4 pixels it loses 13 of 46 points.
        shift = 0 if self.task.name == "cifar10" else 8
        return self.train.draws(self.batch, seed=key(name, self.seed), shift=shift)

    # --- arms -----------------------------------------------------------------------------------

    def dense(self) -> nn.Module:
        return self.teacher

    def dense_longer(self) -> nn.Module:
        model = self.task.dense()
        model.load_state_dict(self.teacher.state_dict())
        self._supervise(model, "dense longer", self.steps(self.task.epochs[2]), 5e-4)
        return model

    def after_phase_1(self) -> nn.Module:
        model = acmize(self.teacher, learners=LEARNERS)
        distill(
            model, self.teacher, self.draws("phase 1"), **self._options("1", self.task.epochs[0])
        )
        return model

    def after_phase_2(self) -> nn.Module:
        model = self.get("phase 1", self.after_phase_1)
        options = self._options("2", self.task.epochs[1])
        pretrain_gates(model, self.teacher, self.draws("phase 2"), **options)
        return model

    def gated(self, budget: float) -> nn.Module:
        model = self.get("phase 2", self.after_phase_2)
        options = self._options("3", self.task.epochs[2])
        finetune(model, self.draws("phase 3"), budget=budget, task=smoothed, lr=5e-4, **options)
        return model

    def calibrated(self, budget: float) -> nn.Module:
        model = self.get("gated 0.5", lambda: self.gated(0.5))
        calibrate(model, self.train.take(torch.arange(0, len(self.train), 10)).batches(), budget)
        return model

    def same_k(self, k: int) -> nn.Module:
        model = set_mode(self.get("phase 1", self.after_phase_1), k)
        options = self._options("3", self.task.epochs[2])
        finetune(model, self.draws("phase 3"), budget=1.0, task=smoothed, lr=5e-4, **options)
        return model

    def narrow(self, k: int) -> nn.Module:
        model = acmize(self.teacher, learners=1, flops_factor=k / LEARNERS)
        distill(
            model, self.teacher, self.draws("phase 1"), **self._options("1", self.task.epochs[0])
        )
        set_mode(model, 1)
        options = self._options("3", self.task.epochs[2])
        finetune(model, self.draws("phase 3"), budget=1.0, task=smoothed, lr=5e-4, **options)
        return deacmize(model, 1)

    def arms(self) -> Iterator[tuple[str, str, float, Callable[[], nn.Module]]]:
        """Family, name, nominal budget, and how to make it."""
        yield "dense", "dense", 1.0, self.dense
        yield "dense", "dense, longer", 1.0, self.dense_longer
        for k in WIDTHS:
            share = k / LEARNERS
            yield "gated", f"gated {share:g}", share, lambda share=share: self.gated(share)
        yield "calibrated", "calibrated 0.25", 0.25, lambda: self.calibrated(0.25)
        for k in WIDTHS:
            share = k / LEARNERS
            yield "same k", f"same k {share:g}", share, lambda k=k: self.same_k(k)
            yield "narrow", f"narrow {share:g}", share, lambda k=k: self.narrow(k)

    # --- bookkeeping ----------------------------------------------------------------------------

    def get(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """Train an arm, or build it from the weights that were kept."""
        path = self.folder and self.folder / f"{self.task.name}-{self.seed}" / f"{name}.safetensors"
        if path and path.exists():
            self.kept[name] = load_file(path)
        if name not in self.kept:
            state = make().state_dict()
            self.kept[name] = {k: v.detach().clone().contiguous() for k, v in state.items()}
            if path:
                with atomic(path) as temporary:
                    save_file(self.kept[name], temporary)
        model = self._skeleton(name)
        model.load_state_dict(self.kept[name])
        return model.eval()

    def _skeleton(self, name: str) -> nn.Module:
        family, _, share = name.rpartition(" ")
        if family == "narrow":
            cut = acmize(self.task.dense(), learners=1, flops_factor=float(share))
            return deacmize(cut, 1)
        if name.startswith(("dense", "teacher")):
            return self.task.dense()
        model: Any = acmize(self.teacher, learners=LEARNERS)
        model.acm_phases = ("distill", "gate") if name != "phase 1" else ("distill",)
        return set_mode(model, round(LEARNERS * float(share))) if family == "same k" else model

    def _options(self, phase: str, epochs: int) -> dict[str, Any]:
        label = f"{self.task.name} phase {phase}"
        return {"steps": self.steps(epochs), "seed": self.seed, "progress": label}

    def _teacher(self) -> nn.Module:
        if self.task.name == "cifar10":
            model = self.task.dense()
            model.load_state_dict(load_file(locate("vision/tiny_vit_cifar10.safetensors")))
            return model.eval()

        def make() -> nn.Module:
            model = self.task.dense()
            self._supervise(model, "teacher", self.steps(self.task.teacher_epochs), 2e-3)
            return model

        torch.manual_seed(self.seed)
        return self.get("teacher", make)

    def _supervise(self, model: nn.Module, name: str, steps: int, lr: float) -> None:
        distiller = Supervised(model, Objective(task=(1.0, smoothed)))
        fit(
            distiller, self.draws(name), steps=steps, lr=lr, optimizer=decayed,
            schedule=cosine(0.01, warmup=0.1), clip=1.0, seed=self.seed,
            progress=f"{self.task.name} {name}",
        )  # fmt: skip


def decayed(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)


def times(models: dict[str, nn.Module], images: Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds of each model, in turns: the median over rounds."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, model in models.items():
                taken[name].append(latency(model, images, blocks=1, warmup=1).median)
    return {name: 1e3 * float(torch.tensor(t).median()) for name, t in taken.items()}


def measure(study: Study) -> dict[str, Any]:
    """All figures of one task and seed."""
    models = {
        name: (family, share, study.get(name, make)) for family, name, share, make in study.arms()
    }
    images = next(iter(study.test.batches(256)))[0]
    milliseconds = times(
        {n: m for n, (_, _, m) in models.items()}, images, 3 if study.quick else 15
    )
    rows = {}
    for name, (family, share, model) in models.items():
        if acms(model):
            found = profile(model, study.test.batches(), blocks=1)
            budget, spread, top1, macs = found.budget, found.spread, found.accuracy, found.macs
        else:
            logits, labels = predict(model, study.test.batches())
            assert labels is not None
            top1, macs = accuracy(logits, labels), count_macs(model, images[:1])
            budget, spread = share, 0.0
        rows[name] = {
            "family": family, "nominal": share, "top1": 100 * top1, "budget": budget,
            "spread": spread, "MMACs": macs / 1e6, "ms": milliseconds[name],
        }  # fmt: skip
    return {"rows": rows, "errors": prefix_errors(study), "batch": len(images)}


def prefix_errors(study: Study) -> list[float]:
    """Mean squared error of the first 1..N learners after phase 1, on the test images."""
    from potstill.acm import ModuleDistillation

    model = study.get("phase 1", study.after_phase_1)
    reader = ModuleDistillation(model, study.teacher)
    sums = torch.zeros(LEARNERS)
    with torch.no_grad():
        batches = list(study.test.batches())
        for batch in batches:
            for name, (z, o) in reader.readings(batch).items():
                prefixes = acms(model)[name].prefixes(z)[1:]
                sums += (prefixes - o).square().flatten(1).mean(1)
    return [float(value) / len(batches) / len(acms(model)) for value in sums]


def narrow_ms_at(rows: dict[str, Any], top1: float) -> float | None:
    """Milliseconds of the fastest narrow or dense model that is at least as accurate."""
    able = [
        row["ms"] for row in rows.values()
        if row["family"] in ("narrow", "dense") and row["top1"] >= top1
    ]  # fmt: skip
    return min(able) if able else None


def verdict(rows: dict[str, Any]) -> str:
    """Whether gating pays on this task, from the figures alone."""
    sentences = []
    for name in ("gated 0.25", "gated 0.5"):
        gated = rows[name]
        other = narrow_ms_at(rows, gated["top1"])
        same = rows[name.replace("gated", "same k")]
        gain = gated["top1"] - same["top1"]
        text = (
            f"{name}: {gated['top1']:.2f} % in {gated['ms']:.2f} ms, {gain:+.2f} points against "
            "the same k for every token; "
        )
        if other is None:
            text += "no narrow or dense model is as accurate."
        else:
            text += f"the fastest narrow or dense model as accurate takes {other:.2f} ms."
        sentences.append((gated["ms"] < (other or float("inf")), text))
    wins = sum(won for won, _ in sentences)
    plain = {
        0: "Adaptivity does not pay in milliseconds on this task: ",
        1: "Adaptivity pays in milliseconds on this task at one of two budgets: ",
        2: "Adaptivity pays in milliseconds on this task at both budgets tried: ",
    }[wins]
    return plain + " ".join(text for _, text in sentences)


def figures(found: list[dict[str, Any]]) -> dict[str, Figure]:
    """What the issue promises, one value a seed."""

    def each(value: Callable[[dict[str, Any]], float]) -> list[float]:
        return [value(one) for one in found]

    def gap(one: dict[str, Any], name: str) -> float:
        row = one["rows"][name]
        return abs(row["budget"] - row["nominal"])

    def step(one: dict[str, Any]) -> float:
        errors = one["errors"]
        return min(1 - b / a for a, b in pairwise(errors))

    def top(one: dict[str, Any], name: str) -> float:
        return float(one["rows"][name]["top1"])

    def over_narrow(one: dict[str, Any]) -> float:
        rows = one["rows"]
        other = narrow_ms_at(rows, rows["gated 0.5"]["top1"])
        return float(rows["gated 0.5"]["ms"] / other) if other else 0.0

    return {
        "drop": Figure(each(lambda o: top(o, "dense") - top(o, "gated 0.5")), "points"),
        "budget_gap": Figure(each(lambda o: gap(o, "gated 0.5"))),
        "calibrated_gap": Figure(each(lambda o: gap(o, "calibrated 0.25"))),
        "error_step": Figure(each(step)),
        "over_same_k": Figure(each(lambda o: top(o, "gated 0.5") - top(o, "same k 0.5")), "points"),
        "over_narrow": Figure(each(lambda o: top(o, "gated 0.5") - top(o, "narrow 0.5")), "points"),
        "time_over_narrow": Figure(each(over_narrow), "x", timed=True),
    }


PROMISED = {
    "drop": at_most(2.0, "issue 7: within 2 points of dense at budget 0.5"),
    "budget_gap": at_most(0.03, "issue 7: |budget - 0.5|"),
    "calibrated_gap": at_most(0.03, "issue 7: |budget - 0.25| with calibration, held out"),
    "error_step": at_least(0.0, "issue 7: phase-1 error decreases with k"),
}


@benchmark(data="vision/cifar10_10k.zip", budget=600, threads=1, targets=PROMISED)
def cifar10(quick: bool) -> dict[str, Figure]:
    """Three phases on the CIFAR-10 subset, against the same k and narrow dense models."""
    return figures([measure(Study(TASKS["cifar10"], 0, None, quick))])


@benchmark(data="vision/imagenette_96.zip", budget=600, threads=1)
def imagenette(quick: bool) -> dict[str, Figure]:
    """The same on 1,000 images of Imagenette at 96 pixels; nothing is promised here."""
    return figures([measure(Study(TASKS["imagenette"], 0, None, quick))])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/acm-learning"))
    parser.add_argument("--task", choices=[*TASKS, "both"], default="both")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    names = list(TASKS) if options.task == "both" else [options.task]
    found = {}
    for name in names:
        for seed in range(options.seeds):
            path = options.out / f"{name}-{seed}.json"
            if not path.exists():
                study = Study(TASKS[name], seed, options.out, options.quick)
                result = measure(study)
                save_pretrained(study.get("gated 0.5", lambda s=study: s.gated(0.5)),
                                options.out / f"{name}-{seed}" / "gated")  # fmt: skip
                with atomic(path) as temporary:
                    temporary.write_text(json.dumps(result, indent=1))
            found.setdefault(name, []).append(json.loads(path.read_text()))
    for name, results in found.items():
        page = report(TASKS[name], results, options.quick)
        page.show()
        Console().print(page.summary, "\nwrote", str(page.save(options.out / name)))


def average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of one arm over seeds, numbers averaged."""
    first = rows[0]
    numbers = {k: sum(r[k] for r in rows) / len(rows) for k in first if k != "family"}
    return {"family": first["family"], **numbers}


def report(task: Task, results: list[dict[str, Any]], quick: bool) -> Report:
    """Table, curves and verdict of one task; several seeds as mean and deviation."""
    first = results[0]
    columns = {
        "top1": Column("%", best="max"), "budget": Column(digits=3), "spread": Column(digits=2),
        "MMACs": Column(), "ms": Column(f"ms, batch {first['batch']}"),
    }  # fmt: skip
    mean = {name: average([r["rows"][name] for r in results]) for name in first["rows"]}
    note = "Smoke run, no claims. " if quick else ""
    page = Report(
        f"Adaptive computation on {task.name}",
        summary=note + verdict(mean), columns=columns, label="model",
        data=sha256(locate(task.archive))[:12],
    )  # fmt: skip
    for name in first["rows"]:
        values = {key: [r["rows"][name][key] for r in results] for key in columns}
        page.add(name, **values)
    page.plot(curves(mean, "MMACs"), "Top-1 accuracy against multiply-adds", "Accuracy and MACs")
    page.plot(curves(mean, "ms"), "Top-1 accuracy against milliseconds", "Accuracy and time")
    errors = [sum(r["errors"][k] for r in results) / len(results) for k in range(LEARNERS)]
    page.table(["learners", "mean squared error"], [[k + 1, e] for k, e in enumerate(errors)],
               "Phase 1: error of the first k learners on test images")  # fmt: skip
    page.text(str(asdict(task)), "Setting")
    return page


def curves(rows: dict[str, Any], x: str) -> Callable[[Any], None]:
    """One line a family."""

    def draw(axes: Any) -> None:
        for family in ("gated", "calibrated", "same k", "narrow", "dense"):
            chosen = sorted((r[x], r["top1"]) for r in rows.values() if r["family"] == family)
            style = "s" if family == "dense" else "o-"
            axes.plot(*zip(*chosen, strict=True), style, label=family)
        axes.set_xlabel({"MMACs": "multiply-adds of an image [M]", "ms": "time of a batch [ms]"}[x])
        axes.set_ylabel("top-1 accuracy [%]")
        axes.legend()

    return draw


if __name__ == "__main__":
    main()
