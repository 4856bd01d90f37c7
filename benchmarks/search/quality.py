"""What scores and samplers are worth on tables of accuracies that others have measured.

python -m benchmarks search --check
"""

import numpy as np
import torch

from potstill.core import locate, seed_all
from potstill.core.images import load_images
from potstill.core.measure.bench import Figure, at_least, at_most, benchmark
from potstill.search import SmallResNet, Space, agreement, explore, read_table, scores

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
