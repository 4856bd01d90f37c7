"""KRD and HGMD: their formulas by hand, and their limits."""

import math

import pytest
import torch

from potstill.core.errors import ConfigError, ShapeError
from potstill.graph.criteria.peers import HGMD, KRD, entropy, reliability
from potstill.graph.models.teachers import GCNTeacher

EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])


def logits(seed=0):
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


def test_entropy():
    z = torch.tensor([[0.0, 0.0], [50.0, -50.0]])
    torch.testing.assert_close(entropy(z), torch.tensor([math.log(2), 0.0]))


def test_krd_draws_reliable_neighbours_only():
    z_s, z_t = logits()
    z_s.requires_grad_()
    krd = KRD(temperature=2.0, rho=torch.tensor([0.0, 1.0, 1.0]))  # only node 0 ever teaches
    value = krd(z_s, z_t, EDGES)
    p, log_q = (z_t[0] / 2).softmax(0), (z_s[1] / 2).log_softmax(0)
    torch.testing.assert_close(value, (p * (p.log() - log_q)).sum())
    value.backward()
    assert not z_s.grad[[0, 2]].any()


def test_krd_with_nobody_reliable_is_zero():
    z_s, z_t = logits()
    assert KRD(rho=torch.ones(3))(z_s, z_t, EDGES) == 0


def test_the_power_follows_agreement():
    z = torch.eye(2).repeat(500, 1) * 5
    rho = torch.linspace(0, 1, 1000)
    flipped = z.clone()
    disagree = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < rho**3
    flipped[disagree] = flipped[disagree].flip(1)
    krd = KRD(rho=rho, power=1.0, momentum=0.5)
    for _ in range(30):
        krd(flipped, z, EDGES)
    assert 2.3 < float(krd.a) < 3.9


def test_reliability_is_relative_to_the_worst_node(graph):
    torch.manual_seed(0)
    teacher = GCNTeacher(5, 8, 2, 3).eval()
    rho = reliability(lambda x: teacher(x, graph.edge_index), graph.x, draws=3)
    assert rho.shape == (30,)
    assert float(rho.max()) == 1
    assert float(rho.min()) >= 0


def test_hgmd_chance_by_hand():
    z_s, z_t = logits()
    found = HGMD(alpha=2.0).chance(z_s, z_t, EDGES)
    p, q = z_t.softmax(1), z_s.softmax(1)
    h_t, h_s = -(p * p.log()).sum(1), -(q * q.log()).sum(1)
    for (j, i), value in zip(EDGES.T.tolist(), found, strict=True):
        cosine = torch.cosine_similarity(p[i], p[j], dim=0)
        exact = 1 - torch.exp(-2.0 * cosine * (h_t[i] * h_s[i]).sqrt() / h_t[j])
        torch.testing.assert_close(value, exact)


@pytest.mark.parametrize("mode", ["weight", "mixup"])
def test_hgmd_with_every_neighbour(mode):
    z_s, z_t = logits()
    z_s.requires_grad_()
    value = HGMD(alpha=1e6, mode=mode)(z_s, z_t, EDGES)  # chance 1: all join, weight 1
    p, log_q = z_t.softmax(1)[EDGES[0]], z_s.log_softmax(1)[EDGES[1]]
    torch.testing.assert_close(value, (p * (p.log() - log_q)).sum(1).mean())
    value.backward()
    assert z_s.grad.isfinite().all()


def test_krd_as_published_starts_with_every_edge_and_the_node_itself():
    z_s, z_t = logits()
    krd = KRD(rho=torch.ones(3), warmup=2, loops=True)
    loops = torch.cat([EDGES, torch.arange(3).expand(2, -1)], 1)
    both = [(z_t[j].softmax(0) * (z_t[j].log_softmax(0) - z_s[i].log_softmax(0))).sum()
            for j, i in loops.T.tolist()]  # fmt: skip
    for _ in range(2):
        torch.testing.assert_close(krd(z_s, z_t, EDGES), sum(both) / 6)
        assert float(krd.a) == 1
    torch.testing.assert_close(krd(z_s, z_t, EDGES), sum(both[3:]) / 3)  # nobody is reliable


def test_hgmd_as_published_mixes_by_beta_and_joins_less_and_less():
    z_s, z_t = logits()
    torch.manual_seed(0)
    fixed = HGMD(alpha=1e6, mode="mixup", loops=True)(z_s, z_t, EDGES)
    drawn = [HGMD(alpha=1e6, mode="mixup", beta=0.25, loops=True)(z_s, z_t, EDGES)
             for _ in range(20)]  # fmt: skip
    assert len({float(value) for value in drawn}) == 20
    own = HGMD(alpha=1e-9, mode="mixup", loops=True)(z_s, z_t, EDGES)  # nobody joins
    p, log_q = z_t.softmax(1), z_s.log_softmax(1)
    torch.testing.assert_close(own, (p * (p.log() - log_q)).sum(1).mean())
    everyone = torch.cat([EDGES[0], torch.arange(3)]), torch.cat([EDGES[1], torch.arange(3)])
    p, log_q = p[everyone[0]], log_q[everyone[1]]
    torch.testing.assert_close(fixed, (p * (p.log() - log_q)).sum(1).mean())
    falling = HGMD(alpha=5.0, span=10)
    first = falling.chance(z_s, z_t, EDGES)
    for _ in range(10):
        falling(z_s, z_t, EDGES)
    torch.testing.assert_close(
        falling.chance(z_s, z_t, EDGES), HGMD(alpha=0.05).chance(z_s, z_t, EDGES)
    )
    torch.testing.assert_close(first, HGMD(alpha=5.0).chance(z_s, z_t, EDGES))


def test_options_are_checked():
    with pytest.raises(ConfigError, match="alpha, beta and span must be > 0, got 1.0, 1.0, 0"):
        HGMD(beta=0)
    with pytest.raises(ConfigError, match="warmup >= 0, got 1.0, 1.0, 0.99 and -1"):
        KRD(warmup=-1)
    with pytest.raises(ConfigError, match="temperature and power must be > 0"):
        KRD(temperature=0)
    with pytest.raises(ShapeError, match=r"rho must be \[3\], got \[2\]"):
        KRD(rho=torch.zeros(2))(*logits(), EDGES)
    with pytest.raises(ConfigError, match="mode must be weight or mixup, got 'mix'"):
        HGMD(mode="mix")
    with pytest.raises(ConfigError, match="alpha, beta and span must be > 0, got 1.0, 0"):
        HGMD(alpha=0)
