"""A validation that processes share gives what one of the whole gives, or is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Batches, ConfigError, Distiller, Engine, Mean, Objective, Validation, fit
from potstill.core.engine.ranks import run_ranks

torch.manual_seed(3)
HELD = torch.randn(7, 4)  # not a multiple of the processes


class Normed(Distiller):
    """Its batch statistics are each process's own."""

    def forward(self, batch, step):
        return self.objective(step, task=(self.student(batch), batch[:, :1]))


def train(split, engine):
    calls = []

    def score(student, part=slice(None)):
        calls.append(len(HELD[part]))
        values = [float(student(row[None]).square()) for row in HELD[part]]
        none = Mean.of([])
        return {"error": Mean.of(values) if split else sum(values) / len(values), "none": none}

    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    rows = fit(
        Normed(student, Objective(task=(1.0, F.mse_loss))), Batches(torch.randn(12, 4), 4),
        steps=4, engine=engine, progress=False, lr=0.05,
        validation=Validation(score, every=2, mode="min", split=split),
    )  # fmt: skip
    return [row["error"] for row in rows if "error" in row], calls


def train_both(parallel="ddp"):
    with Engine("cpu", parallel=parallel) as engine:
        return [train(split, engine) for split in (False, True)]


def test_a_part_is_all_where_one_process_is():
    whole, part = train_both()
    assert part == whole
    assert part[1] == [7, 7]


@pytest.mark.dist
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_parts_make_the_whole(parallel):
    for rank, (whole, part) in enumerate(run_ranks(train_both, 2, parallel)):
        torch.testing.assert_close(part[0], whole[0], rtol=1e-6, atol=0)
        # A sharded student takes all processes for each forward, so all score the whole.
        assert part[1] == [7 if parallel == "fsdp" else (4, 3)[rank]] * 2


def test_what_is_no_mean_cannot_be_shared():
    with pytest.raises(ConfigError, match=r"'area' must be a Mean\(total, count\).*got float"):
        fit(
            Normed(nn.Linear(4, 1), Objective(task=(1.0, F.mse_loss))), [HELD], steps=1,
            validation=Validation(lambda s, part: {"area": 0.5}, every=1, split=True),
            progress=False,
        )  # fmt: skip
