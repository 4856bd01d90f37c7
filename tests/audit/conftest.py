"""Digits, and small trainings."""

import pytest
import torch
from sklearn.datasets import load_digits

from potstill.audit import Data, Learning, Network, Patch, poison


@pytest.fixture(scope="session")
def digits() -> Data:
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return Data((x[:700], y[:700]), (x[700:1300], y[700:1300]), (x[1300:], y[1300:]))


@pytest.fixture(scope="session")
def learning() -> Learning:
    return Learning(10, (48,), (24,), steps=120, lr=0.01)


@pytest.fixture(scope="session")
def patch() -> Patch:
    return Patch((0, 2), (0, 2))


@pytest.fixture(scope="session")
def poisoned(digits: Data, learning: Learning, patch: Patch) -> Network:
    """A teacher with a backdoor into class 0."""
    found = poison(*digits.teacher, patch, 0, 0.1)
    return learning.train_teacher(found.x, found.y, 0)


@pytest.fixture(scope="session")
def clean(digits: Data, learning: Learning) -> Network:
    return learning.train_teacher(*digits.teacher, 0)
