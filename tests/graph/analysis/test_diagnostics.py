"""The figures of information drowning, by hand and end to end."""

import pytest
import torch

from potstill.core.errors import ConfigError
from potstill.graph.analysis.diagnostics import diagnose, measure, two_hops
from potstill.graph.data.datasets import load
from potstill.graph.training.recipes import Recipe

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


def test_a_perfect_copy(graph):
    z = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    figures = measure(z, z, graph.edge_index)
    assert figures["edge_kl"] == pytest.approx(0, abs=1e-6)
    assert figures["agreement"] == 1


def test_edge_divergence_by_hand():
    z_s, z_t = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    figures = measure(z_s, z_t, PATH)
    total = 0.0
    for i, j in ((0, 1), (1, 2)):
        p, q = (z_t[i] - z_t[j]).abs().softmax(0), (z_s[i] - z_s[j]).abs().softmax(0)
        total += float((p * (p / q).log()).sum()) / 2
    assert figures["edge_kl"] == pytest.approx(total, rel=1e-5)
    p = z_s.softmax(1)
    cosine = torch.cosine_similarity(p[[0, 1]], p[[1, 2]])
    assert figures["cosine"] == pytest.approx(float(cosine.mean()), rel=1e-6)


def test_two_hops_of_a_path():
    assert two_hops(PATH, 3).T.tolist() == [[0, 2], [2, 0]]
    assert two_hops(PATH, 3, most=1).shape == (2, 1)


def test_end_to_end(tmp_path):
    data = load("digits")
    found = diagnose(data, Recipe(epochs=12), ("glnn", "ff-g2m"), every=4)
    assert [row["epoch"] for row in found.curves["glnn"]] == [0, 4, 8]
    first, last = found.curves["ff-g2m"][0], found.curves["ff-g2m"][-1]
    assert last["agreement"] > first["agreement"]
    assert last["cosine"] > 0.5
    report = found.save(tmp_path, "digits")
    assert "FF-G2M" in report.markdown()
    assert (tmp_path / "index.html").stat().st_size > 10_000
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 7
    assert len(list(tmp_path.glob("plot-*.png"))) == 8


def test_errors():
    with pytest.raises(ConfigError, match="every must be at least 1 epoch, got 0"):
        diagnose(load("digits"), Recipe(), every=0)
