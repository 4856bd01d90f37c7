"""Conversions against their honest controls, at equal CPU time.

``python -m benchmarks nerf arms-hash arms-vm arms-mlp arms-cp matrix`` judges the registered
figures. ``python -m benchmarks.nerf.conversion --out benchmarks/results/nerf`` writes the same, one
cell at a time, to ``conversion.csv``; cells that are there are not run again, so a long
evening may be cut into short ones.
"""

import argparse
import csv
import time
from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from potstill.core import Engine, atomic, provenance, seed_all
from potstill.core.measure.bench import Figure, at_least, at_most, benchmark
from potstill.core.measure.report import csv_text
from potstill.core.store import root
from potstill.nerf import (
    RATES,
    Field,
    Progression,
    Scene,
    Split,
    Stopwatch,
    convert,
    load_field,
    load_scene,
    make_field,
    prior_of,
    save_field,
    score,
    student_of,
    train_field,
    transfer,
)

KINDS = ("hash", "mlp", "vm", "cp", "grid")
ARMS = ("distilled", "own occupancy", "teacher's occupancy", "hand-over")
SHARES = (0.1, 0.25, 0.5, 1.0)
SCENES = {"lego_200": 2, "fox_270": 3, "fern": 16}
TEACHER_SECONDS, ARM_SECONDS = 40.0, 25.0
HANDED = {"hash": (0.15, 1.0), "vm": (0.15, 1.0), "mlp": (0.85, 0.3), "cp": (0.3, 1.0)}
"""Share of the budget that a hand-over distils, and factor of the learning rate from then on.

An ``mlp`` is far from its teacher to the end, so it changes over late and gently (tried on seed 3;
seeds 0 to 2 are the judged ones).
"""
SOURCE = "issue 9: lego at 100x100, CPU time, median of 3 seeds"


def scene_of(name: str) -> Scene:
    return load_scene(root() / "nerf" / name, downsample=SCENES[name])


def judged(scene: Scene, views: int = 8) -> Split:
    """Views that nothing learned from, evenly among the test views."""
    every = max(len(scene.test.cameras) // views, 1)
    index = list(range(0, len(scene.test.cameras), every))[:views]
    assert scene.test.images is not None
    return Split(scene.test.cameras[index], scene.test.images[index])


def teach(scene: Scene, kind: str, seed: int, seconds: float) -> Field:
    seed_all("teacher", seed)
    field = make_field(kind, scene.space)
    clock = time.process_time
    return train_field(field, scene, seconds=seconds, clock=clock, seed=seed, progress=False)[0]


def kept_teacher(folder: Path, scene: Scene, name: str, kind: str, seed: int) -> Field:
    """The teacher of a cell, trained once."""
    path = folder / f"{name}-{kind}-{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_field(teach(scene, kind, seed, TEACHER_SECONDS), path, scene.similarity)
    return load_field(path)[0]


class Snapshots:
    """Weights of a field when shares of a budget are used up; judged when the clock is off."""

    def __init__(self, field: Field, shares: Iterable[float]) -> None:
        self.field, self.left, self.steps = field, list(shares), 0
        self.states: list[dict[str, torch.Tensor]] = []

    def __call__(self, row: dict[str, float], share: float) -> None:
        self.steps = int(row["step"]) + 1
        while self.left and share >= self.left[0] - 1e-9:
            self.left.pop(0)
            state = self.field.state_dict()
            self.states.append({name: value.clone() for name, value in state.items()})

    def scores(self, split: Split) -> list[float]:
        values = []
        for state in self.states:
            self.field.load_state_dict(state)
            values.append(score(self.field, split))
        return values


def run_arm(
    arm: str,
    scene: Scene,
    teacher: Field,
    kind: str,
    seed: int,
    seconds: float,
    device: str = "cpu",
) -> tuple[list[float], int]:
    """PSNR on unseen views at 1/10, 1/4, 1/2 and all of the budget, and how many steps it took.

    The budget is in CPU-seconds on a CPU, on a GPU in those of the wall.
    """
    split, clock = judged(scene), "cpu" if device == "cpu" else "wall"
    seed_all("student", seed)
    if arm == "own occupancy":
        field = make_field(kind, scene.space)
    elif arm == "teacher's occupancy":
        # Where rays meet few samples, a start as transparent as elsewhere stays transparent: with
        # the default shift of -1 `hash` fell behind by 3 dB, and once never learned anything.
        dense, size = replace(teacher.activation, shift=1.0), teacher.occupancy.size
        field = make_field(kind, scene.space, activation=dense, occupancy=size)
        transfer(teacher, field, head=False)
    else:
        field = student_of(teacher, kind)
        transfer(teacher, field, head=False)
    shared, gentle = (
        HANDED.get(kind, (0.3, 1.0)) if arm == "hand-over" else (float(arm == "distilled"), 1.0)
    )
    values: list[float] = []
    steps = 0
    with Engine(device=device) as engine:
        if shared:
            shots = Snapshots(field, [share / shared for share in SHARES if share <= shared])
            prior = prior_of(scene.train.cameras, scene.space)
            budget = {"seconds": shared * seconds, "clock": clock}
            progression = Progression(pools=kind == "mlp")  # others gain nothing
            options = {"seed": seed, "engine": engine, "progress": shots}
            convert(teacher, field, prior, progression, **budget, **options)
            end = {name: value.clone() for name, value in field.state_dict().items()}
            values, steps = shots.scores(split), shots.steps
            field.load_state_dict(end)
        if shared < 1:
            rest = [(share - shared) / (1 - shared) for share in SHARES if share > shared]
            shots = Snapshots(field, rest)
            budget = {"seconds": (1 - shared) * seconds, "clock": Stopwatch(clock)}
            train_field(
                *(field, scene),
                **budget,
                lr=gentle * RATES[kind],
                refresh=arm == "own occupancy",
                seed=seed,
                engine=engine,
                progress=shots,
            )
            values, steps = values + shots.scores(split), steps + shots.steps
    return values, steps


def cells(names: list[str], kinds: Container[str]) -> list[tuple[str, str, str, int, float]]:
    """Scene, student, arm, seed and seconds of what ``names`` stand for, arms side by side."""
    chosen = []
    for name in names:
        what, _, seed = name.partition(":")
        seeds = [int(seed)] if seed else [0, 1, 2]
        for one in seeds:
            if what == "lego":
                chosen += [("lego_200", k, a, one, ARM_SECONDS) for k in KINDS[:4] for a in ARMS]
            elif what == "long":
                chosen += [("lego_200", k, "distilled", one, 60.0) for k in ("mlp", "grid")]
            elif what in ("fern", "fox_270"):
                chosen += [(what, k, a, one, ARM_SECONDS) for k in ("vm", "mlp") for a in ARMS]
            else:
                raise SystemExit(f"unknown cells {name!r}: lego, long, fern or fox_270, and :seed")
    return [cell for cell in chosen if cell[1] in kinds]


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open())) if path.exists() else []


def append(path: Path, row: dict[str, object]) -> None:
    rows = [*rows_of(path), {name: str(value) for name, value in row.items()}]
    with atomic(path) as temporary:
        temporary.write_text(csv_text(list(row), rows))


def measure_cells(
    names: list[str], kinds: Container[str], out: Path, teachers: Path, device: str
) -> None:
    path = out / "conversion.csv"
    for name, kind, arm, seed, seconds in cells(names, kinds):
        key = {"scene": name, "student": kind, "arm": arm, "seed": str(seed)}
        key |= {"seconds": f"{seconds:g}"}
        if any(key.items() <= row.items() for row in rows_of(path)):
            continue
        scene = scene_of(name)
        teacher = kept_teacher(teachers, scene, name, "hash", seed)
        values, steps = run_arm(arm, scene, teacher, kind, seed, seconds, device)
        row: dict[str, object] = {**key, "steps": steps}
        row |= {f"PSNR at {share:g}": f"{v:.3f}" for share, v in zip(SHARES, values, strict=True)}
        row["teacher"] = f"{score(teacher, judged(scene)):.3f}"
        row |= provenance(seed=seed, device=device)
        append(path, row)
        shown = " ".join(f"{value:.2f}" for value in values)
        print(name, kind, arm, seed, steps, shown, row["teacher"], flush=True)


def measure_matrix(seconds: float, seed: int, out: Path, teachers: Path) -> None:
    """Every kind into every kind on lego, each student judged against its teacher."""
    scene, path = scene_of("lego_200"), out / "conversion-matrix.csv"
    prior = prior_of(scene.train.cameras, scene.space)
    for theirs in KINDS:
        for ours in KINDS:
            key = {"teacher": theirs, "student": ours, "seconds": f"{seconds:g}"}
            if any(key.items() <= row.items() for row in rows_of(path)):
                continue
            teacher = kept_teacher(teachers, scene, "lego_200", theirs, seed)
            budget = {"seconds": seconds, "clock": "cpu", "seed": seed, "progress": False}
            student, report = convert(teacher, ours, prior, **budget)
            row: dict[str, object] = dict(key)
            row["to the teacher"] = f"{report.scores['teacher']:.3f}"
            row["PSNR"] = f"{score(student, judged(scene)):.3f}"
            row["PSNR of the teacher"] = f"{score(teacher, judged(scene)):.3f}"
            row |= provenance(seed=seed, device="cpu")
            append(path, row)
            print(theirs, ours, row["to the teacher"], row["PSNR"], flush=True)


def measure_sweep(kinds: Iterable[str], seconds: float, seed: int, out: Path, folder: Path) -> None:
    """Stage boundaries, pools and the head: which schedule wins within a budget."""
    scene, path = scene_of("lego_200"), out / "conversion-sweep.csv"
    prior = prior_of(scene.train.cameras, scene.space)
    variants: dict[str, tuple[Progression, bool]] = {
        "1/15 and 1/6": (Progression(), True),
        "0 and 1/15": (Progression(feature_until=0.0, points_until=1 / 15), True),
        "0 and 1/6": (Progression(feature_until=0.0, points_until=1 / 6), True),
        "0 and 0": (Progression(feature_until=0.0, points_until=0.0), True),
        "0 and 0, pools": (Progression(feature_until=0.0, points_until=0.0, pools=True), True),
        "1/15 and 1/6, pools": (Progression(pools=True), True),
        "1/15 and 1/6, fresh head": (Progression(), False),
        "as published": (Progression.paper(), False),
    }
    teacher = kept_teacher(folder, scene, "lego_200", "hash", seed)
    for kind in kinds:
        for name, (progression, inherit) in variants.items():
            key = {"student": kind, "schedule": name, "seconds": f"{seconds:g}", "seed": str(seed)}
            if any(key.items() <= row.items() for row in rows_of(path)):
                continue
            budget = {"seconds": seconds, "clock": "cpu", "seed": seed, "progress": False}
            student, report = convert(teacher, kind, prior, progression, inherit=inherit, **budget)
            row: dict[str, object] = dict(key)
            row["to the teacher"] = f"{report.scores['teacher']:.3f}"
            row["PSNR"] = f"{score(student, judged(scene)):.3f}"
            row |= provenance(seed=seed, device="cpu")
            append(path, row)
            print(kind, name, row["to the teacher"], row["PSNR"], flush=True)


def gains(kind: str, seeds: int, seconds: float) -> dict[str, list[float]]:
    """Decibels of the arms of one kind, at all of the budget and at a quarter, by figure."""
    scene, found = scene_of("lego_200"), {}
    for seed in range(seeds):
        teacher = teach(scene, "hash", seed, min(TEACHER_SECONDS, 1.6 * seconds))
        arms = {arm: run_arm(arm, scene, teacher, kind, seed, seconds)[0] for arm in ARMS}
        late, early = ({arm: arms[arm][i] for arm in ARMS} for i in (3, 1))
        others = max(late[arm] for arm in ARMS[:3])
        values = {
            "loss to the teacher": score(teacher, judged(scene)) - late["distilled"],
            "over own occupancy": late["distilled"] - late["own occupancy"],
            "over the control, a quarter": early["distilled"] - early["teacher's occupancy"],
            "over the control, end": late["distilled"] - late["teacher's occupancy"],
            "hand-over over the best other": late["hand-over"] - others,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return found


def register(
    kind: str, own: float, quarter: float, loss: float | None = None, end: float | None = None
) -> None:
    """A benchmark of the four arms for one kind."""
    targets = {
        "over own occupancy": at_least(own, SOURCE),
        "over the control, a quarter": at_least(quarter, SOURCE),
        "hand-over over the best other": at_least(0, SOURCE),
    }
    if loss is not None:
        targets["loss to the teacher"] = at_most(loss, SOURCE)
    if end is not None:
        targets["over the control, end"] = at_least(end, SOURCE)

    def arms(quick: bool) -> dict[str, Figure]:
        found = gains(kind, 1 if quick else 3, 1.0 if quick else ARM_SECONDS)
        return {name: Figure(median(values), "dB") for name, values in found.items()}

    arms.__name__ = f"arms_{kind}"
    arms.__doc__ = f"Four arms at 25 CPU-seconds, hash to {kind} on lego at 100x100, 3 seeds."
    benchmark(threads=1, data="nerf/lego_200", budget=900, targets=targets)(arms)


register("hash", own=0.2, quarter=1.5, loss=0.5)
register("vm", own=1.2, quarter=0.5, loss=0.5)
register("cp", own=4.0, quarter=0.5, loss=1.5, end=0.3)
register("mlp", own=2.5, quarter=0.5, end=0.3)


@benchmark(
    threads=1,
    data="nerf/lego_200",
    budget=900,
    targets={"mlp": at_most(2.0, SOURCE + ", 60 s"), "grid": at_most(3.0, SOURCE + ", 60 s")},
)
def arms_long(quick: bool) -> dict[str, Figure]:
    """What hash to mlp and hash to grid lose to the teacher in 60 CPU-seconds, 3 seeds."""
    scene, seconds = scene_of("lego_200"), 1.0 if quick else 60.0
    lost: dict[str, list[float]] = {"mlp": [], "grid": []}
    for seed in range(1 if quick else 3):
        teacher = teach(scene, "hash", seed, min(TEACHER_SECONDS, 1.6 * seconds))
        best = score(teacher, judged(scene))
        for kind, values in lost.items():
            reached, _ = run_arm("distilled", scene, teacher, kind, seed, seconds)
            values.append(best - reached[-1])
    return {kind: Figure(median(values), "dB") for kind, values in lost.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", nargs="*", help="lego, long, fern, fox_270, each with :seed")
    parser.add_argument("--matrix", type=float, help="seconds of each of the 25 conversions")
    parser.add_argument("--sweep", action="store_true", help="schedules against each other")
    parser.add_argument("--kinds", nargs="*", help="students; all by default")
    parser.add_argument("--seconds", type=float, default=12.5, help="of the sweep")
    parser.add_argument("--seed", type=int, default=0, help="of matrix and sweep")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/nerf"))
    parser.add_argument("--teachers", type=Path, default=Path("runs/conversion-teachers"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = options.kinds or KINDS
    measure_cells(options.cells, kinds, options.out, options.teachers, options.device)
    if options.matrix:
        measure_matrix(options.matrix, options.seed, options.out, options.teachers)
    if options.sweep:
        measure_sweep(kinds, options.seconds, options.seed, options.out, options.teachers)


if __name__ == "__main__":
    main()
