"""What condensed sets look like and are worth, by images per class, beside random images.

python -m apps.condense.gallery                                        digits, minutes on a CPU
python -m apps.condense.gallery --train photos/train --test photos/test --method datm
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from apps import card
from potstill.condense import Condensed, Evaluation, Pool, Protocol, condense, evaluate, load_pool
from potstill.condense import picture as grid
from potstill.core import Training
from potstill.core.measure.report import draw_svg, table_html

ARMS = {"condensed": "#3b82f6", "random": "#f59e0b", "all images": "#6b7280"}
DIGITS = ("crop", "scale", "rotate")  # a mirrored digit is another one, or none


def digits() -> tuple[Pool, Pool]:
    """1,297 images of scikit-learn's digits to condense, 500 to test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [(images[n], int(found.target[n])) for n in order]
    train = Pool.of(pairs[:1297])
    return train, Pool.of(pairs[1297:], statistics=train.statistics)


def folders(train: Path, test: Path) -> tuple[Pool, Pool]:
    """Images in class folders, the second ones as networks trained on the first see them."""
    first = load_pool(train)
    return first, load_pool(test, classes=first.classes, statistics=first.statistics)


def pictures(made: Condensed, pool: Pool, path: Path) -> str:
    """The set on the left and its first random images on the right, one column for each class."""
    assert made.baseline is not None
    sets = (made, Condensed.of(pool, made.baseline[0]))
    left, right = (grid(each.pixels(), each.labels) for each in sets)
    gap = left.new_full((len(left), 24, 3), 255)
    Image.fromarray(torch.cat([left, gap, right], 1).contiguous().numpy()).save(path)
    return card.picture(path)


def compared(found: Mapping[int, Evaluation]) -> str:
    """Accuracies by images per class, as a curve and as a table; random images are in both."""
    arms = {n: next(iter(each.accuracies.values())) for n, each in found.items()}

    def draw(axes: Any) -> None:
        for arm, color in ARMS.items():
            values = [each[arm] for each in arms.values()]
            means = [statistics.fmean(each) for each in values]
            spread = [statistics.pstdev(each) for each in values]
            axes.errorbar(list(arms), means, spread, label=arm, color=color, marker="o", capsize=3)
        axes.set_xscale("log")
        axes.set_xticks(list(arms), [str(n) for n in arms])
        axes.set_xlabel("images per class")
        axes.set_ylabel("test accuracy in %")
        axes.legend()

    rows, bold, head = [], set(), ["images per class", *ARMS, "over random"]
    for n, each in arms.items():
        cells = (
            f"{statistics.fmean(each[a]):.1f} ± {statistics.pstdev(each[a]):.1f}" for a in ARMS
        )
        gain = statistics.fmean(each["condensed"]) - statistics.fmean(each["random"])
        if gain <= 0:
            bold.add((len(rows), len(head) - 1))
        rows.append([str(n), *cells, f"{gain:+.1f}{'' if gain > 0 else ': brings nothing'}"])
    numeric = [False, *[True] * (len(head) - 1)]
    return draw_svg(draw) + table_html(head, rows, numeric=numeric, best=frozenset(bold))


def sections(
    pools: tuple[Pool, Pool], method: str, sizes: Sequence[int], protocol: Protocol, out: Path,
    **options: Any,
) -> dict[str, str]:  # fmt: skip
    """Condense to each size and judge it: the parts of a page."""
    found, seen = {}, {}
    for ipc in sizes:
        folder = out / f"{method}-{ipc}"
        made = condense(pools[0], method, ipc, out=folder, progress=False, **options)
        found[ipc] = evaluate(
            made, *pools, protocol, training=Training(steps=1, device=card.DEVICE)
        )
        print(found[ipc].report().markdown(), flush=True)
        title = f"{ipc} per class: made on the left, random on the right"
        seen[title] = pictures(made, pools[0], out / f"{method}-{ipc}.png")
    return {f"What images made by {method} are worth": compared(found), **seen}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Condense to several sizes; returns the page."""
    options = card.options_of(
        (__doc__ or "").splitlines()[0], arguments, method="method of synthesis; dm by default",
        train="folder of class folders to condense", test="folder of class folders to judge by",
    )  # fmt: skip
    small, own = options.small, bool(options.train)
    pools = folders(Path(options.train), Path(options.test)) if own else digits()
    network = "convnet-3-128-instance" if own else "convnet-2-32-instance"
    protocol = Protocol((network,), repeats=3, draws=3, steps=300, full_steps=600, margins=False)
    if small:
        network = "convnet-2-4-instance"
        protocol = replace(protocol, networks=(network,), repeats=2, steps=2, full_steps=2)
    augment = protocol.augment if own else DIGITS
    parts = sections(
        pools, options.method or "dm", (1, 2) if small else (1, 3, 10, 30),
        replace(protocol, augment=augment), options.out, network=network, augment=augment,
        training=Training(steps=2 if small else 400, device=card.DEVICE),
    )  # fmt: skip
    return card.write(options, "Few images in the place of many", parts)


if __name__ == "__main__":
    main()
