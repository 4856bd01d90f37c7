"""Two bits on scikit-learn's digits: post-training, no teacher, teacher; three seeds.

python -m benchmarks quant two-bit-digits
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import Batches, Objective, accuracy, fit
from potstill.core.criteria import kd
from potstill.core.measure.bench import Figure, Skip, at_least, benchmark
from potstill.core.schemes import LogitDistiller
from potstill.quant import DualBinary, Grid, lower, post_training

TRAIN = 1297


def digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise Skip("needs scikit-learn") from missing
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x).float().reshape(-1, 1, 8, 8) / 16, torch.tensor(y)


def network(first: int, second: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * second, 10),
    )  # fmt: skip


def train(student: nn.Module, data: Batches, steps: int, seed: int, lr: float, teacher=None):
    terms = {"task": (1.0, F.cross_entropy)}
    if teacher is not None:
        terms = {"task": (0.3, F.cross_entropy), "kd": (0.7, partial(kd, T=2.0))}
    distiller = LogitDistiller(student, Objective(terms), teacher)
    fit(distiller, data, steps=steps, lr=lr, seed=seed, progress=False)
    return student


@benchmark(
    budget=600,
    threads=1,
    targets={
        "teacher over labels": at_least(3.0, "issue 23: 2-bit digits"),
        "teacher over full precision": at_least(-5.0, "issue 23: 2-bit digits"),
        "teacher over mse": at_least(25.0, "design note, section 14"),
    },
)
def two_bit_digits(quick: bool) -> dict[str, Figure]:
    """Top-1 on 500 digits of a student of 666 parameters at 2 bits, equal steps for each arm."""
    x, y = digits()
    data = Batches(list(zip(x[:TRAIN], y[:TRAIN], strict=True)), 128)
    steps, seeds = (20, 1) if quick else (200, 3)
    found: dict[str, list[float]] = {}

    def note(name: str, student: nn.Module) -> None:
        with torch.no_grad():
            score = 100 * float(accuracy(student.eval()(x[TRAIN:]), y[TRAIN:]))
        found.setdefault(name, []).append(score)

    for seed in range(seeds):
        torch.manual_seed(seed)
        teacher = train(network(32, 64), data, 2 * steps, seed, 5e-3)
        full = train(network(4, 8), data, 3 * steps, seed, 5e-3)
        note("teacher's own", teacher)
        note("full precision", full)
        inputs = list(x[:256].split(64))
        for method in ("max", "mse", "gptq"):
            note(f"post {method}", post_training(full, Grid(2), inputs, method=method).student)
        for name, guide in (("labels", None), ("teacher", teacher)):
            note(name, train(lower(full, Grid(2)), data, steps, seed, 2e-3, guide))
            start = post_training(full, Grid(2), inputs, method="gptq").student
            note(f"{name} from gptq", train(start, data, steps, seed, 2e-3, guide))
        dual = lower(full, Grid(2), quantizer=DualBinary)
        note("teacher, dual", train(dual, data, steps, seed, 2e-3, teacher))
    figures = {name: Figure(values, "%") for name, values in found.items()}
    for name, other in (("labels", "labels"), ("full precision", "full precision"),
                        ("mse", "post mse")):  # fmt: skip
        gains = [a - b for a, b in zip(found["teacher"], found[other], strict=True)]
        figures[f"teacher over {name}"] = Figure(gains, "points")
    return figures
