"""An update does not depend on how its batch is cut into micro-batches and processes."""

import functools

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn

from potstill.core import Distiller, Engine, Losses, Mean, Objective, Stage, Turn, fit
from potstill.core.criteria import Taid, kd, mse, taid
from potstill.core.engine.ranks import run_ranks

ITEMS = 24
CLOSE = {"rtol": 2e-6, "atol": 1e-6}
# Sizes of the parts of a batch: one is a single item, and the first has no label at all.
CUTS = [[12, 12], [4, 8, 12], [4, 2, 6, 12], [5, 1, 6, 2, 7, 3]]


def over_edges(z, t, edges):
    """A mean over edges, of which there are not so many as items."""
    return Mean((z[edges] - t[edges]).abs().sum(), torch.tensor(edges.shape[0]))


TERMS = {
    "task": F.cross_entropy,
    "weighted": functools.partial(
        F.cross_entropy, weight=torch.tensor([0.2, 0.1, 1.0, 0.5]), label_smoothing=0.1
    ),
    "soft": kd,
    "taid": functools.partial(taid, tau=0.3),
    "rows": F.mse_loss,
    "tokens": mse,
    "chosen": F.l1_loss,  # a scalar that says nothing of what it averages over
    "edges": over_edges,
}


class Mixed(Distiller):
    def forward(self, batch, step):
        x, y, chosen, edges, mask = batch
        z, t = self.student(x), self.teacher(x)
        tokens = (a.view(len(a), 2, 2) for a in (z, t))
        given = {
            "task": (z, y), "weighted": (z, y), "soft": (z, t, y), "taid": (z, t, y),
            "rows": (z, t), "tokens": (*tokens, mask), "chosen": (z[chosen], t[chosen]),
            "edges": (z, t, edges),
        }  # fmt: skip
        return self.objective(step, {k: v for k, v in given.items() if k in self.objective.names})


def part(step, start, size):
    """Items of a batch, and what belongs to them."""
    g = torch.Generator().manual_seed(step)
    x, y = torch.randn(ITEMS, 5, generator=g), torch.randint(0, 4, (ITEMS,), generator=g)
    y[torch.rand(ITEMS, generator=g) < 0.3] = -100
    y[:5] = -100
    mask = torch.rand(ITEMS, 2, generator=g) < 0.6
    own = torch.arange(start, start + size)
    chosen = (own % 2 == 0) | (own == 5)
    edges = (own - start).repeat_interleave(own % 4)
    return x[own], y[own], chosen, edges, mask[own]


def train(sizes, terms=tuple(TERMS), engine=None, **options):
    """Weights and rows after two steps on batches that are cut into ``sizes``."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
    objective = Objective({name: (0.5 + i, TERMS[name]) for i, name in enumerate(terms)})
    distiller = Mixed(student, objective, nn.Linear(5, 4))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def draw(micro, rank, world):
        step, k = divmod(micro * world + rank, len(sizes))
        return part(step, starts[k], sizes[k])

    engine = engine or Engine(device="cpu")
    rows = fit(
        distiller, draw, steps=2, accumulate=len(sizes) // engine.world, lr=0.01,
        optimizer=torch.optim.SGD, engine=engine, progress=False, **options,
    )  # fmt: skip
    weights = engine.state_of(student)
    return weights, [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def train_all(cuts, parallel):
    with Engine(device="cpu", parallel=parallel) as engine:  # one for all: a process has one group
        return [train(sizes, engine=engine) for sizes in cuts]


@pytest.fixture(scope="module")
def whole():
    return train([ITEMS])


@pytest.mark.parametrize("sizes", CUTS, ids=str)
def test_micro_batches_are_one_batch(whole, sizes):
    torch.testing.assert_close(train(sizes), whole, **CLOSE)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_alone_is_put_right_without_another_backward(term):
    one = train([ITEMS], (term,))
    for sizes in CUTS:
        torch.testing.assert_close(train(sizes, (term,)), one, **CLOSE)


@pytest.mark.dist
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_are_one_batch(whole, parallel):
    cuts = [sizes for sizes in CUTS if len(sizes) % 2 == 0]
    for rank, found in enumerate(run_ranks(train_all, 2, cuts, parallel)):
        for weights, rows in found:
            torch.testing.assert_close(rows, whole[1], **CLOSE)
            if rank == 0 or parallel == "ddp":  # sharded weights are gathered on the main process
                torch.testing.assert_close(weights, whole[0], **CLOSE)


def test_a_dropped_mask_is_noticed(whole, monkeypatch):
    """The same with a `kd` whose count says that every row counts."""
    monkeypatch.setitem(TERMS, "soft", lambda z, t, y: Mean(kd(z, t, y, reduction="sum"), len(y)))
    one = train([ITEMS])
    assert one[1][0]["soft"] < 0.9 * whole[1][0]["soft"]
    monkeypatch.setitem(TERMS, "soft", lambda z, t, y: kd(z, t, y) * 1)  # forgets its count
    assert abs(train([4, 8, 12])[1][0]["soft"] - whole[1][0]["soft"]) > 1e-3


def test_updates_of_a_turn_are_split_alike():
    turns = (Turn("student", ["student.*"], times=2),)
    one, cut = (
        train(sizes, stages=[Stage(share=1.0, turns=turns)]) for sizes in ([24], [4, 8, 12])
    )
    torch.testing.assert_close(cut, one, **CLOSE)


def test_terms_that_part_later_are_said():
    def halves(z, *_):  # rows that follow another rule than those of the other terms
        return z.square().mean()

    class Two(Distiller):
        def forward(self, batch, step):
            z = self.student(batch[: len(batch) // 2 * 2])
            return self.objective(step, all=(z,), some=(z[:4],))

    objective = Objective(all=(1.0, halves), some=(1.0, halves))
    batches = [torch.randn(4, 3), torch.randn(8, 3)]
    with pytest.warns(UserWarning, match="counted the same in the first micro-batch"):
        fit(Two(nn.Linear(3, 2), objective), batches, steps=1, accumulate=2, progress=False)


def test_losses_made_by_hand_weigh_the_same_each():
    class ByHand(Distiller):
        def forward(self, batch, step):
            total = self.student(batch).sum()
            return Losses(total, {"own": total.detach()}, {"own": 1.0})

    student = nn.Linear(1, 1, bias=False)
    nn.init.ones_(student.weight)
    distiller = ByHand(student, Objective(own=(1.0, F.l1_loss)))
    batches = [torch.ones(1, 1), torch.ones(3, 1)]
    sgd = torch.optim.SGD
    (row,) = fit(distiller, batches, steps=1, accumulate=2, lr=0.1, optimizer=sgd, progress=False)
    assert row["loss"] == row["own"] == 2.0
    assert student.weight.item() == pytest.approx(1 - 0.1 * 2)


def test_taid_follows_the_loss_of_the_whole_batch():
    torch.manual_seed(0)
    z = torch.randn(2, 6, 4)
    y = torch.tensor([0, 1, -100, -100, -100, 2])
    expected = Taid(9)
    expected(*z, y)
    for found in run_ranks(taid_state, 2, z, y):
        torch.testing.assert_close(found, expected.previous)


def taid_state(z, y):
    rank, criterion = torch.distributed.get_rank(), Taid(9)
    items = slice(3 * rank, 3 * rank + 3)
    criterion(z[0, items], z[1, items], y[items])
    return criterion.previous
