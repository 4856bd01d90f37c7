"""Filters, ratios and spectra against closed forms and eigendecompositions."""

import math

import pytest
import torch
from torch_geometric.utils import to_undirected

from potstill.core.errors import ConfigError, ShapeError
from potstill.graph.analysis.spectral import (
    dirichlet_ratio,
    high_pass,
    laplacian,
    low_pass,
    spectral_energy,
)


def ring(count):
    nodes = torch.arange(count)
    return to_undirected(torch.stack([nodes, (nodes + 1) % count]))


def test_the_two_parts_add_up(graph):
    for x in (graph.x, graph.x.double()):
        both = low_pass(x, graph.edge_index) + high_pass(x, graph.edge_index)
        torch.testing.assert_close(both, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 5, 10])
def test_waves_on_a_ring(k):
    angle = 2 * math.pi * k * torch.arange(20, dtype=torch.float64) / 20
    wave, frequency = angle.cos()[:, None], 1 - math.cos(2 * math.pi * k / 20)
    torch.testing.assert_close(low_pass(wave, ring(20)), (1 - frequency / 2) * wave)
    torch.testing.assert_close(high_pass(wave, ring(20)), frequency / 2 * wave)
    assert dirichlet_ratio(wave, ring(20)) == pytest.approx(frequency, abs=1e-12)


def test_eigenvalues_lie_in_zero_to_two(graph):
    values = torch.linalg.eigvalsh(laplacian(graph.edge_index, 30))
    assert -1e-9 < float(values.min()) < 1e-9
    assert float(values.max()) <= 2 + 1e-9


def test_a_pair_of_nodes():
    edges = torch.tensor([[0, 1], [1, 0]])
    spectrum = spectral_energy(torch.tensor([[1.0], [-1.0]]), edges, bins=4)
    torch.testing.assert_close(spectrum.energy, torch.tensor([0, 0, 0, 1.0]).double())


def test_lanczos_finds_the_energies_of_the_exact_way(graph):
    # 7 bins: isolated nodes have the eigenvalue 1, which must not be the border of two bins
    exact = spectral_energy(graph.x, graph.edge_index, bins=7)
    close = spectral_energy(graph.x, graph.edge_index, bins=7, exact_up_to=0, steps=30)
    torch.testing.assert_close(close.energy, exact.energy, rtol=1e-6, atol=1e-6)
    assert float(exact.energy.sum()) == pytest.approx(1)


def test_few_lanczos_steps_still_match_the_mean_frequency(graph):
    spectrum = spectral_energy(graph.x, graph.edge_index, bins=2000, exact_up_to=0, steps=4)
    middle = (spectrum.edges[1:] + spectrum.edges[:-1]) / 2
    mean = float((middle.double() * spectrum.energy).sum())
    assert mean == pytest.approx(dirichlet_ratio(graph.x, graph.edge_index), abs=2e-3)


def test_errors():
    with pytest.raises(ShapeError, match=r"low_pass: x must be \[nodes, channels\] float"):
        low_pass(torch.zeros(3), ring(3))
    with pytest.raises(ConfigError, match="bins and steps must be at least 1, got 0"):
        spectral_energy(torch.zeros(3, 1), ring(3), bins=0)
