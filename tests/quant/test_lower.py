"""Models that are lowered, trained, copied and baked."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import ConfigError, DataError, Objective, Run, Stage, fit
from potstill.core.schemes import LogitDistiller
from potstill.quant import (
    Buckets,
    DualBinary,
    Grid,
    LearnedLevels,
    LearnedStep,
    bake,
    bytes_of,
    lower,
    lowered,
    post_training,
)

QUANTIZERS = [LearnedStep, Buckets, LearnedLevels, DualBinary]


class Net(nn.Module):
    """Uses a weight itself, has attention, a transposed convolution and a bare table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.used = nn.Conv2d(8, 6, 1)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.table = nn.Parameter(torch.randn(16, 4))

    def forward(self, x):
        x = F.conv2d(self.conv(x), self.used.weight, self.used.bias)
        x = self.up(x).flatten(2).mT
        return self.norm(self.attention(x, x, x)[0]) + self.table.mean(0)


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def batches():
    x = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(1))
    return [(each, each[:, :3].argmax(1)) for each in x]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def train(model, folder=None, source=None, **options):
    distiller = LogitDistiller(model, Objective(task=(1.0, F.cross_entropy)))
    run = None if folder is None else Run(folder, minutes=0)
    return fit(distiller, source or batches(), lr=1e-2, progress=False, run=run, **options)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_baked_is_lowered_bit_for_bit(quantizer) -> None:
    model, x = net(), torch.randn(2, 3, 5, 5)
    student = lower(model, Grid(2), parameters={"table": Grid(2, axis=None, block=8)},
                    keep={"conv": 8}, quantizer=quantizer)  # fmt: skip
    assert [each.key for each in lowered(student)] == [
        "table", "conv.weight", "used.weight", "up.weight", "attention.in_proj_weight",
        "attention.out_proj.weight",
    ]  # fmt: skip
    again = copy.deepcopy(student)
    plain = bake(student)
    assert type(plain.conv) is nn.Conv2d
    assert list(plain.state_dict()) == list(model.state_dict())
    assert torch.equal(plain(x), student(x))
    assert torch.equal(again(x), student(x))  # a copy outlives what happens to its original
    assert not torch.equal(model(x), student(x))
    assert not lowered(model)
    assert not lowered(bake(model))
    for each in lowered(student):
        rounded = getattr(each.module, each.name).detach()
        codes, scales = each.quantizer.encode(each.original.detach())
        assert int(codes.max()) < 2**each.quantizer.grid.bits
        assert torch.equal(each.quantizer.decode(each.quantizer.grid, codes, scales), rounded)
    assert bytes_of(student) < bytes_of(model)


def test_thirty_two_bits_change_nothing() -> None:
    plain, same = small(), lower(small(), Grid(32))
    losses = [[row["loss"] for row in train(model, steps=5)] for model in (plain, same)]
    assert losses[0] == losses[1]
    assert torch.equal(plain[0].weight, same[0].weight)


def test_a_lowered_student_trains_and_resumes(tmp_path) -> None:
    """Weights and scales move; a run that breaks off is continued as one run, bit for bit."""
    whole, parts = lower(small(), Grid(2)), lower(small(), Grid(2))
    before = whole[0].parametrizations.weight[0].scale.detach().clone()
    train(whole, tmp_path / "whole", steps=6)
    breaking = [RuntimeError("the power fails")]

    def draw(step, rank, world):
        if step == 4 and breaking:
            raise breaking.pop()
        return batches()[step % 3]

    with pytest.raises(RuntimeError, match="the power fails"):
        train(parts, tmp_path / "parts", draw, steps=6)
    parts = lower(small(), Grid(2))
    train(parts, tmp_path / "parts", draw, steps=6)
    assert not torch.equal(whole[0].parametrizations.weight[0].scale, before)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_batch_norms_that_move_while_only_levels_train_are_told() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    frozen = [Stage(share=1.0, trainable=["*.levels"])]
    student = lower(plain, Grid(2), quantizer=LearnedLevels)
    with pytest.warns(UserWarning, match=r"running statistics move; call eval\(\) on batch norms"):
        train(student, steps=1, stages=frozen)
    train(student, steps=1)  # weights train too: nothing to tell
    train(lower(small(), Grid(2), quantizer=LearnedLevels), steps=1, stages=frozen)


def test_post_training_is_where_training_starts() -> None:
    student = lower(small(), Grid(4))
    made = post_training(small(), Grid(4)).student
    assert torch.equal(student[0].weight, made[0].weight)
    assert (student[0].weight - small()[0].weight).abs().max() < 0.1


REFUSED = [
    (dict(keep={"blocks": 8}), "keep must name paths of the model, got 'blocks'; known: 0, 1, 2"),
    (dict(parameters={"0.weights": Grid()}), "got '0.weights'; did you mean '0.weight'"),
    (dict(keep={"0": 32, "2": 32}), "a weight to lower, got none among Linear, ReLU, Sequential"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_wrong_paths_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        lower(small(), Grid(4), **options)


def test_wrong_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="a plain one, got a lowered one; bake it first"):
        lower(lower(small(), Grid(4)), Grid(2))
    tied = small()
    tied.add_module("3", nn.Linear(4, 8))
    tied[3].weight = tied[0].weight
    with pytest.raises(ConfigError, match=r"3.weight and 0.weight must not be one tensor"):
        lower(tied, Grid(4))
    lower(tied, Grid(4), keep={"3": 32})
    with pytest.raises(ConfigError, match="one that is parametrized, as by weight_norm"):
        lower(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), Grid(4))
    broken = small()
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.nan
    with pytest.raises(DataError, match=r"2.weight must be finite, got NaN"):
        lower(broken, Grid(4))
