"""What scores and samplers are worth on tables of accuracies that others have measured.

python -m benchmarks search --check
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F

from apps.search import pareto
from potstill.core import BackendError, Training, fit, locate, seed_all
from potstill.core.engine import fit_with
from potstill.core.images import load_images
from potstill.core.measure.bench import Figure, Skip, at_least, at_most, benchmark
from potstill.search import (
    Budget,
    Candidate,
    Cell,
    Darts,
    Found,
    SmallResNet,
    Space,
    agreement,
    curvature,
    discretize,
    explore,
    measure,
    read_table,
    recalibrate,
    require_steady,
    scores,
    two_turns,
)

S1, CORA = "search/s1_cifar100_resnets.json", "search/nasbenchgraph_cora.npz"
PHOTOS = "vision/cifar10_10k.zip"


def diswot_on_s1(init: str, draws: int) -> dict[str, Figure]:
    """Kendall's tau of DisWOT with published distilled accuracies, for several draws of weights."""
    rows = read_table(locate(S1))
    images = load_images(locate(PHOTOS) / "cifar10" / "test")
    truth = [row["distilled"] for row in rows]
    found: dict[str, list[float]] = {}
    for draw in range(draws):
        seed_all("s1", draw)
        few = images.take(torch.randperm(len(images))[:16])
        batch = few.normalized(few.pixels), torch.randint(100, (16,))
        teacher = scores.initialise(SmallResNet((9, 9, 9), 16, 100), init)
        students = [scores.initialise(SmallResNet(r["depth"], 16, 100), init) for r in rows]
        names = ("diswot", "diswot_relation", "diswot_semantic", "random", "parameters")
        values = {n: [scores.SCORES[n](s, batch, teacher) for s in students] for n in names}
        for row in agreement(values, truth, resamples=2):
            found.setdefault(row.name, []).append(row.tau)
    return {name: Figure(taus) for name, taus in found.items()} | {
        "parameters ahead by": Figure(np.mean(found["parameters"]) - np.mean(found["diswot"])),
        "random, largest": Figure(max(map(abs, found["random"]))),
    }


BOUNDS = {
    "parameters ahead by": at_least(0.0, "issue 25 (b): the size of a student ranks better"),
    "random, largest": at_most(0.26, "issue 25 (b): three standard deviations"),
}


@benchmark(targets={"diswot": at_least(0.45, "issue 25 (b)"), **BOUNDS}, data=(S1, PHOTOS),
           threads=1, budget=300)  # fmt: skip
def diswot_normal(quick: bool) -> dict[str, Figure]:
    """DisWOT on 64 residual networks with weights of N(0, 1), as in the authors' script."""
    return diswot_on_s1("normal", 1 if quick else 3)


@benchmark(targets={"diswot": at_least(0.18, "issue 25 (b)"), **BOUNDS}, data=(S1, PHOTOS),
           threads=1, budget=300)  # fmt: skip
def diswot_kaiming(quick: bool) -> dict[str, Figure]:
    """DisWOT on 64 residual networks with He's weights, as in the authors' search."""
    return diswot_on_s1("kaiming", 1 if quick else 3)


@benchmark(
    targets={
        "regret": at_most(1.25, "issue 25 (e): 200 evaluations"),
        "over random": at_most(0.05, "issue 25 (e): not above random"),
    },
    data=CORA, threads=1, budget=300,
)  # fmt: skip
def graph_networks(quick: bool) -> dict[str, Figure]:
    """Validation accuracy within the median latency, after 200 of 26,206 graph networks (Cora)."""
    with np.load(locate(CORA)) as table:
        keys, names, values = table["arch"], list(table["columns"]), table["values"]
    accuracy = 100 * values[:, names.index("valid_accuracy")]
    latency = values[:, names.index("latency")]
    bound = np.median(latency)
    best = accuracy[latency <= bound].max()
    codes = [f"{key:0{len(str(keys.max()))}d}" for key in keys]  # a digit for each decision
    index = {code: row for row, code in enumerate(codes)}
    digits = {f"g{j}": sorted(set(column)) for j, column in enumerate(zip(*codes, strict=True))}

    def code(**choice: str) -> str:
        return "".join(choice.get(name, values[0]) for name, values in digits.items())

    choices = {name: values for name, values in digits.items() if len(values) > 1}
    space = Space(torch.nn.Identity, choices, valid=lambda **choice: code(**choice) in index)

    def evaluate(choice: dict[str, str]) -> tuple[float, float]:
        row = index[code(**choice)]
        return accuracy[row], latency[row] / bound - 1

    def regret(rows: list[int]) -> float:
        return best - max(accuracy[row] for row in rows if latency[row] <= bound)

    seeds = range(2 if quick else 20)
    ours = [
        regret([index[code(**c)] for c in explore(space, evaluate, seed=seed)]) for seed in seeds
    ]
    chance = [
        regret(np.random.default_rng(seed).permutation(len(keys))[:200].tolist()) for seed in seeds
    ]
    return {"regret": Figure(ours, "points"), "random": Figure(chance, "points"),
            "over random": Figure(np.mean(ours) - np.mean(chance), "points")}  # fmt: skip


@benchmark(
    targets={
        "over the largest": at_least(-1.0, "issue 25 (f): the largest within the budget"),
        "over the mean": at_least(0.0, "issue 25 (f): the mean of those within the budget"),
    },
    threads=1, budget=600,
)  # fmt: skip
def suggest_digits(quick: bool) -> dict[str, Figure]:
    """The student of 36 residual networks on digits, over others within the same budget."""
    ours, largest, mean = [], [], []
    for seed in range(1 if quick else 3):
        with TemporaryDirectory() as folder:
            found = pareto.search(
                Budget(macs=3e5), Path(folder), steps=4 if quick else 300, shortlist=6, seed=seed
            )
        allowed = [one for one in found.candidates if not one.excess]
        allowed.sort(key=lambda one: -one.costs["parameters"])
        some = [allowed[i] for i in np.linspace(0, len(allowed) - 1, 2 if quick else 7).astype(int)]
        accuracies = [trained(found, one, seed) for one in some]
        ours.append(found.best.accuracy[-1])
        largest.append(ours[-1] - accuracies[0])
        mean.append(ours[-1] - float(np.mean(accuracies)))
    return {"accuracy": Figure(ours, "%"), "over the largest": Figure(largest, "points"),
            "over the mean": Figure(mean, "points")}  # fmt: skip


def trained(found: Found, one: Candidate, seed: int) -> float:
    """Accuracy of a candidate after the training of the last rung."""
    student = found.space.make(one.choice, seed)
    training = Training(lr=2e-3, final=0.0, warmup=0.05, seed=seed, device="cpu")
    fit_with(training, found.task.distiller(student), found.task.source, steps=found.steps[-1],
             progress=False)  # fmt: skip
    return found.task.accuracy(student)


@benchmark(targets=at_most(1.1, "issue 25 (f): measured again"), threads=1, budget=300)
def latency_digits(quick: bool) -> dict[str, Figure]:
    """Time of the chosen student, measured again, over the budget; needs an idle machine."""
    try:
        with TemporaryDirectory() as folder:
            found = pareto.search(
                Budget(milliseconds=1.0), Path(folder), steps=4 if quick else 100, shortlist=4
            )
        again = measure(found.student, found.task.example)
        require_steady([again])
    except BackendError as error:
        raise Skip(str(error)) from error
    return {"ratio": Figure(again.milliseconds, timed=True)}


@benchmark(threads=1, budget=600)
def self_distilled_choices(quick: bool) -> dict[str, Figure]:
    """Sharpness and discretization gap of a differentiable search on digits, by self-distillation.

    No target: nothing that was measured supports one.
    """
    figures: dict[str, list[float]] = {}
    for seed in range(1 if quick else 3):
        for name, distil in (("plain", 0.0), ("self-distilled", 1.0)):
            for key, value in search_cell(seed, distil, 4 if quick else 400).items():
                figures.setdefault(f"{name}: {key}", []).append(value)
    return {name: Figure(values) for name, values in figures.items()}


def search_cell(seed: int, distil: float, steps: int) -> dict[str, float]:
    train, held = pareto.digits(seed)
    halves = train.split(0.5, seed)
    seed_all("darts", seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), Cell(8), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 10),
    )  # fmt: skip
    draws = [half.draws(64, seed=seed, augment=False) for half in halves]

    def draw(step: int, rank: int, world: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [each(step, rank, world) for each in draws]

    distiller = Darts(net, distil=distil, every=10)
    fit(distiller, draw, stages=[two_turns(lr=3e-3)], steps=steps, seed=seed, progress=False)
    x, y = next(held.batches(len(held)))
    fresh = recalibrate(discretize(net), [b for b, _ in halves[0].batches(64)])

    def accuracy(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((model.eval()(x).argmax(1) == y).double().mean())

    sharp = curvature(net.eval(), lambda model: F.cross_entropy(model(x), y))
    return {"curvature": sharp, "supernet": accuracy(net), "gap": accuracy(net) - accuracy(fresh)}
