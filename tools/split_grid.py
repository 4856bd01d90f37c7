"""Deviation of an update that is cut up, from the same update in one piece.

python tools/split_grid.py           all cells, as a table
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Distiller, Engine, Mean, Objective, fit
from potstill.core.criteria import kd
from potstill.core.engine import run_ranks

# A block of one thread holds 32 rows, a sixth of the items 40. More classes would measure something
# else: with 2^15 the product with the last layer's weights alone rounds by 3e-6 in float32.
ITEMS, CLASSES = 240, 2**12
MICRO_BATCHES, RANKS = (1, 2, 3), (1, 2)
BLOCKS = {"one": False, "several": True}
MASKS = ("none", "a third", "uneven")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 65536.0  # of the loss, as torch's loss scaler begins
BOUNDS = {"fp32": 1e-6, "bf16": 2**-8, "fp16": 2**-11}  # rounding of the logits' gradients


def _edges(z, t, edges):
    return Mean(
        (z[edges, :64] - t[edges, :64]).float().abs().mean(1).sum(), torch.tensor(len(edges))
    )


class _Terms(Distiller):
    """A labelled, a masked, an unmasked and an edge-averaged term, on logits of one precision."""

    precision = "fp32"

    def forward(self, batch, step):
        x, y, edges = batch
        z, t = (m(x).to(PRECISIONS[self.precision]) for m in (self.student, self.teacher))
        task = (z.float(), y)  # as autocast has it
        return self.objective(step, task=task, masked=(z, t, y), rows=(z, t), edges=(z, t, edges))


def _labels(mask):
    g = torch.Generator().manual_seed(1)
    y = torch.randint(0, CLASSES, (ITEMS,), generator=g)
    if mask == "a third":
        y[torch.randperm(ITEMS, generator=g)[: ITEMS // 3]] = -100
    if mask == "uneven":
        y[: ITEMS // 3] = -100
    return y


def _update(engine, micros, blocked, mask, precision):
    """The gradients that the optimizer gets, and the loss."""
    torch.manual_seed(0)
    parts, x, y = micros * engine.world, torch.randn(ITEMS, 4), _labels(mask)
    student, teacher = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, CLASSES)) for _ in range(2))
    gradients = []
    size = ITEMS // parts

    def draw(micro, rank, world):
        items = torch.arange(ITEMS)[(micro * world + rank) * size :][:size]
        edges = (items - items[0]).repeat_interleave(items % 4)
        return x[items], y[items], edges

    def soft(z, t, target=None):
        return kd(z, t, target, blocked=blocked)

    scale = SCALE if precision == "fp16" else 1.0
    terms = {"task": (scale, F.cross_entropy), "masked": (scale, soft), "rows": (scale, soft)}
    distiller = _Terms(student, Objective(terms, edges=(scale, _edges)), teacher)
    distiller.precision = precision

    def watched(named, lr):
        sgd = torch.optim.SGD(named, lr=lr)
        sgd.register_step_pre_hook(lambda *_: gradients.extend(p.grad.clone() for _, p in named))
        return sgd

    options = {"steps": 1, "accumulate": micros, "optimizer": watched, "progress": False}
    rows = fit(distiller, draw, engine=engine, **options)
    return gradients, rows[0]["loss"]


def _updates(cells):
    with Engine(device="cpu") as engine:
        return [_update(engine, *cell) for cell in cells]


def _deviation(found, whole):
    """The larger one of the relative deviations of the gradients and of the loss."""
    (gradients, loss), (expected, expected_loss) = found, whole
    pairs = zip(gradients, expected, strict=True)
    return max(abs(loss / expected_loss - 1), *(float((g - e).norm() / e.norm()) for g, e in pairs))


def grid(micro_batches=MICRO_BATCHES, ranks=RANKS, masks=MASKS, precisions=tuple(PRECISIONS)):
    """One row a cell: ``micro_batches``, ``ranks``, ``blocks``, ``mask``, ``precision``,
    ``deviation`` (relative to one batch of one process in one block) and its ``bound``."""
    cells = list(itertools.product(micro_batches, BLOCKS.values(), masks, precisions))
    bases = list(itertools.product([1], [False], masks, precisions))
    whole = dict(zip([base[2:] for base in bases], _updates(bases), strict=True))
    names = {value: name for name, value in BLOCKS.items()}
    rows = []
    for world in ranks:
        found = _updates(cells) if world == 1 else run_ranks(_updates, world, cells)[0]
        for (micros, blocked, mask, precision), update in zip(cells, found, strict=True):
            rows.append({
                "micro_batches": micros, "ranks": world, "blocks": names[blocked], "mask": mask,
                "precision": precision, "deviation": _deviation(update, whole[mask, precision]),
                "bound": BOUNDS[precision],
            })  # fmt: skip
    return rows


def main():
    torch.set_num_threads(1)
    rows = grid()
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(f"{v:.1e}" if isinstance(v, float) else str(v) for v in row.values()))
    print(f"{len(rows)} cells")
    for precision in PRECISIONS:
        worst = max(row["deviation"] for row in rows if row["precision"] == precision)
        print(f"largest deviation in {precision}: {worst:.1e}")


if __name__ == "__main__":
    main()
