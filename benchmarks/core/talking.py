"""Messages between two models beside `kd` and labels alone, on scikit-learn's digits.

python -m benchmarks core talking
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import Distiller, Objective, accuracy, fit, seed_all
from potstill.core.criteria import kd
from potstill.core.measure.bench import Figure, benchmark
from potstill.core.schemes import LogitDistiller, TalkingDistiller

LABELLED, SEEDS = 50, 5


def network(width: int) -> nn.Sequential:
    """Two hidden layers; their outputs after the activation are the states."""
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.data, dtype=torch.float32) / 16
    return x[order], torch.tensor(found.target)[order]


@benchmark(threads=1)
def talking(quick: bool = False) -> dict[str, Figure]:
    """Accuracy with 50 labelled images, five seeds; an untrained teacher is the control."""
    x, y = digits()
    steps, found = 20 if quick else 300, {}
    few, rest, test = slice(0, LABELLED), slice(LABELLED, 1300), slice(1300, None)
    for seed in range(1 if quick else SEEDS):
        seed_all("teacher", seed)
        teacher, fresh = network(96), network(96)
        labels = Objective(task=(1.0, F.cross_entropy))
        fit(LogitDistiller(teacher, labels), [(x[rest], y[rest])], steps=steps, lr=3e-3, seed=seed,
            progress=False)  # fmt: skip
        for name in ("labels", "kd", "talking", "kd, untrained", "talking, untrained"):
            seed_all("student", seed)
            student = network(16)
            arm = distiller(name.partition(",")[0], student, fresh if "," in name else teacher)
            fit(arm, [(x[few], y[few])], steps=steps, lr=3e-3, seed=seed, progress=False)
            with torch.no_grad():
                right = 100 * float(accuracy(student(x[test]), y[test]))
            found.setdefault(name, []).append(right)
    return {name: Figure(values, "%") for name, values in found.items()}


def distiller(name: str, student: nn.Module, teacher: nn.Module) -> Distiller:
    """The arm of a name."""
    if name == "talking":
        return TalkingDistiller(
            student, teacher, lower=("1", "1"), upper=("3", "3"), widths=(16, 96, 16, 96)
        )
    terms = {"task": (1.0, F.cross_entropy)} | ({"kd": (1.0, kd)} if name == "kd" else {})
    return LogitDistiller(student, Objective(terms), teacher)
