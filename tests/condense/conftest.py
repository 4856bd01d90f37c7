"""Small pools of random images."""

import pytest
import torch

from potstill.condense import Pool


@pytest.fixture
def pool_of():
    """``pool_of((3, 4))``: three images of class a, four of class b, [3 8 8] bytes."""

    def make(counts: tuple[int, ...], seed: int = 0) -> Pool:
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        rng = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (len(labels), 3, 8, 8), generator=rng, dtype=torch.uint8)
        names = tuple("abcdef"[: len(counts)])
        return Pool(pixels, labels, names, ((0.5,) * 3, (0.25,) * 3))

    return make


@pytest.fixture
def no_curves(monkeypatch):
    """Runs without ``curves.png``, which takes longer than they do."""
    monkeypatch.setattr("potstill.core.engine.fit.plot_curves", lambda *_: None)
