"""The adapter to the authors' code, against a stand-in with the same interface written here."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.graph import official
from potstill.core.measure.bench import Skip

MODELS = """
import dgl
import torch
from dgl.nn import GATConv, GraphConv
from torch import nn


class Model(nn.Module):
    def __init__(self, param):
        super().__init__()
        widths = [param["feat_dim"]] + [param["hidden_dim"]] * (param["num_layers"] - 1)
        pairs = zip(widths, widths[1:] + [param["label_dim"]])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)

    def forward(self, graph, x):
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)

    def edge_distribution_high(self, edge_idx, z, tau):
        i, j = edge_idx[1]
        return torch.log_softmax((z[i] - z[j]).abs() / tau, 1)

    def edge_distribution_low(self, edge_idx, log_q, log_p, criterion):
        return FACTOR * criterion(log_q[edge_idx[0][0]], log_p[edge_idx[0][1]])
"""

TRAINING = """
import dgl
from utils import total


def train_mini_batch(model, edge_idx, x, y, z_t, seen, labels, match, optimizer, param):
    model.train()
    z = model(None, x)
    log_q, tau = z.log_softmax(1), param["tau"]
    own = labels(log_q[seen], y[seen])
    low = model.edge_distribution_low(edge_idx, log_q, z_t.log_softmax(1), match)
    high = match(*(model.edge_distribution_high(edge_idx, u, tau) for u in (z, z_t)))
    loss = total(own, low, high, param["lamb"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rest = 1 - param["lamb"]
    return own.item() * param["lamb"], low.item() * rest, high.item() * rest
"""

UTILS = "def total(own, low, high, lamb):\n    return lamb * own + (1 - lamb) * (low + high)\n"


@pytest.fixture
def checkout(tmp_path: Path):
    def write(factor: float = 1.0) -> Path:
        (tmp_path / "src").mkdir()
        files = {"models": f"FACTOR = {factor}\n{MODELS}", "train_and_eval": TRAINING}
        for name, text in {**files, "utils": UTILS}.items():
            (tmp_path / "src" / f"{name}.py").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize("pair", [official.criterion, official.student_step])
def test_both_sides_do_the_same_work(checkout, pair) -> None:
    torch.manual_seed(0)
    race = pair(checkout(), "digits")
    for _ in range(2):  # the second step sees the weights of the first
        race.check(race.ours(), race.baseline())


@pytest.mark.parametrize("pair", [official.criterion, official.student_step])
def test_another_formula_is_noticed(checkout, pair) -> None:
    torch.manual_seed(0)
    race = pair(checkout(factor=1.01), "digits")
    with pytest.raises(AssertionError, match="not close"):
        race.check(race.ours(), race.baseline())


def test_nothing_is_left_behind(checkout) -> None:
    before = {*sys.path}, {*sys.modules}
    official.modules(checkout())
    assert ({*sys.path}, {*sys.modules}) == before


def test_another_folder_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="no checkout of LirongWu/FF-G2M"):
        official.modules(tmp_path)
