"""Which student for a teacher of digits: the Pareto page of a search, from data that needs no file.

python -m apps.search.pareto --out runs/search               a budget of multiply-adds
python -m apps.search.pareto --milliseconds 0.5              a budget of time, on an idle machine
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from potstill.core import Objective, Training, fit, seed_all
from potstill.core.images import Images
from potstill.core.schemes import LogitDistiller
from potstill.search import Budget, Found, SmallResNet, image_task, resnet, suggest

DEPTHS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
WIDTHS = (2, 4, 6, 8, 12, 16)


def digits(seed: int = 0) -> tuple[Images, Images]:
    """1,797 handwritten digits of 8 x 8 pixels: four fifths to train on, the rest to judge by."""
    data = load_digits()
    pixels = torch.tensor(data.images * 15.9375).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    labels = torch.tensor(data.target)
    names, classes = tuple(map(str, range(len(labels)))), tuple("0123456789")
    images = Images(pixels.contiguous(), labels, names, classes, ((0.5,) * 3, (0.25,) * 3))
    held, train = images.split(0.2, seed)
    return train, held


def teach(train: Images, steps: int, seed: int) -> SmallResNet:
    """A teacher, trained on labels."""
    seed_all("teacher", seed)
    teacher = SmallResNet((3, 3), 24, num_classes=10)
    distiller = LogitDistiller(teacher, Objective(task=(1.0, F.cross_entropy)))
    batches = train.draws(64, seed=seed, shift=1)
    fit(distiller, batches, steps=steps, lr=2e-3, seed=seed, progress="teacher")
    return teacher


def search(
    budget: Budget, out: Path, *, steps: int = 300, shortlist: int = 8, seed: int = 0
) -> Found:
    """The student of 36 residual networks within a budget."""
    train, held = digits(seed)
    teacher = teach(train, steps, seed)
    task = image_task(teacher, train, held, folder=out / "teacher", views=4, shift=1, seed=seed)
    training = Training(steps=steps, lr=2e-3, final=0.0, warmup=0.05, seed=seed, device="cpu")
    space = resnet(10, depth=DEPTHS, width=WIDTHS)
    return suggest(space, task, budget, training=training, shortlist=shortlist, out=out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    parser.add_argument("--milliseconds", type=float)
    parser.add_argument("--macs", type=float)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    macs = words.macs or (None if words.milliseconds else 3e5)
    budget = Budget(milliseconds=words.milliseconds, macs=macs)
    found = search(budget, words.out, steps=words.steps, seed=words.seed)
    report = found.report()
    report.show()
    print(f"page: {report.save(words.out)}")


if __name__ == "__main__":
    main()
