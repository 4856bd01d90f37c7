"""What must hold exactly between criteria, and at their limits."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from potstill.core import criteria as c
from potstill.core.criteria import ranking

N, C = 6, 7


@pytest.fixture
def z():
    g = torch.Generator().manual_seed(3)
    return [3 * torch.randn(N, C, generator=g, dtype=torch.float64) for _ in range(2)]


@pytest.fixture
def y():
    return torch.randint(0, C, (N,), generator=torch.Generator().manual_seed(4))


def gradient(criterion, z_s, *others):
    z_s = z_s.clone().requires_grad_()
    criterion(z_s, *others).backward()
    return z_s.grad


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_dkd_with_the_teachers_own_weights_is_kd(z, y) -> None:
    T = 4.0
    p_y = torch.softmax(z[1] / T, 1).gather(1, y[:, None]).squeeze(1)
    for blocked in (True, False):
        close(c.dkd(*z, y, beta=1 - p_y, T=T, blocked=blocked), c.kd(*z, T=T))


def test_kd_gradient(z) -> None:
    T = 4.0
    expected = T * (torch.softmax(z[0] / T, 1) - torch.softmax(z[1] / T, 1)) / N
    close(gradient(lambda s, t: c.kd(s, t, T=T), *z), expected)


def test_kd_at_high_temperature_is_a_square(z) -> None:
    centred = [a - a.mean(1, keepdim=True) for a in z]
    expected = (centred[0] - centred[1]).square().sum() / (2 * C * N)
    torch.testing.assert_close(c.kd(*z, T=1e4), expected, rtol=1e-4, atol=0)


def test_jensen_shannon_is_symmetric_and_bounded(z) -> None:
    close(c.gjsd(*z), c.gjsd(z[1], z[0]))
    rows = c.gjsd(50 * z[0], 50 * z[1], reduction="none")
    assert rows.max() <= math.log(2) + 1e-12
    close(c.gjsd(z[0], z[0]), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("lam", [0.1, 0.5])
def test_skewed_divergences_are_bounded(z, lam) -> None:
    for criterion in (c.skew_fkl, c.skew_rkl):
        rows = criterion(50 * z[0], 50 * z[1], lam=lam, reduction="none")
        assert -1e-12 <= rows.min() <= rows.max() <= -math.log(lam) + 1e-12


def test_families_tend_to_the_forward_kl(z) -> None:
    forward = c.kd(*z, T=1.0)
    torch.testing.assert_close(c.alpha_beta(*z, alpha=1.0, beta=1e-6), forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(c.renyi(*z, alpha=1 + 1e-6), forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(c.amari(*z, alpha=1 + 1e-6), forward, rtol=1e-4, atol=0)
    close(c.renyi(*z, alpha=1.0), forward)
    close(c.amari(*z, alpha=0.0), c.reverse_kl(*z))


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.7), (0.6, -0.6)])
def test_alpha_beta_limits(z, a, b) -> None:
    z = [a_ / 3 for a_ in z]
    near = c.alpha_beta(*z, alpha=a + 1e-4, beta=b + 2e-4)
    torch.testing.assert_close(c.alpha_beta(*z, alpha=a, beta=b), near, rtol=2e-2, atol=1e-4)


def test_pld_limits(z, y) -> None:
    hard = torch.full_like(z[1], -1e4).scatter(1, y[:, None], 1e4)
    close(c.pld(z[0], hard, y), F.cross_entropy(z[0], y))
    two, t, label = z[0][:, :2], z[1][:, :2], y % 2
    alpha = torch.softmax(t, 1).gather(1, label[:, None]).squeeze(1)
    close(
        c.pld(two, t, label, reduction="none"),
        alpha * F.cross_entropy(two, label, reduction="none"),
    )
    close(c.pld(z[0] + 5, z[1], y), c.pld(*z, y))


def test_pld_is_convex(z, y) -> None:
    other = z[0].flip(0)
    middle = c.pld((z[0] + other) / 2, z[1], y)
    assert middle <= (c.pld(z[0], z[1], y) + c.pld(other, z[1], y)) / 2


def test_pld_breaks_ties_by_class_index() -> None:
    g = torch.Generator().manual_seed(0)
    z_t = torch.randint(-2, 3, (16, 40), generator=g).float() * 0.5
    z_t[0, :2] = torch.tensor([0.0, -0.0])
    z_s, y = torch.randn(16, 40, generator=g), torch.randint(0, 40, (16,), generator=g)
    fast = gradient(lambda s: c.pld(s, z_t, y), z_s)
    close(fast, gradient(lambda s: c.pld(s, z_t, y, blocked=False), z_s), 1e-6)


def test_the_fast_ranking_is_the_stable_one() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4, 300, generator=g)
    near = torch.nextafter(z, torch.tensor(-torch.inf))  # a last bit apart
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-45, -1e-45, 3e38, -3e38])
    z = torch.cat([z, near, z, odd.expand(4, -1)], 1)
    z = z[:, torch.randperm(z.shape[1], generator=g)]
    y = torch.randint(0, z.shape[1], (4,), generator=g)
    assert torch.equal(ranking._fast_ranking(z, y), ranking._ranking(z, y))


def test_taid_ends(z) -> None:
    assert gradient(lambda s, t: c.taid(s, t, tau=0.0), *z).abs().max() < 1e-15
    entropy = torch.special.entr(z[0].softmax(1)).sum(1).mean()
    close(c.taid(*z, tau=0.0), entropy)
    close(c.taid(*z, tau=1.0), c.soft_ce(*z))


def test_bdkd_limits(z) -> None:
    close(c.bdkd(*z, delta=1.0), c.kd(*z, T=1.0) + c.reverse_kl(*z))
    close(c.bdkd(*z, delta=1.0), c.bdkd(z[1], z[0], delta=1.0))
    flipped = z[0].flip(1)  # equal entropies: both weights 1
    close(c.bdkd(z[0], flipped, delta=9.0), c.bdkd(z[0], flipped, delta=1.0))


def test_total_variation_is_the_complement_of_the_overlap(z) -> None:
    p, q = (a.softmax(1) for a in z)
    close(1 - c.tvd(*z), torch.minimum(p, q).sum(1).mean())


def test_topk_limits(z) -> None:
    forward = c.kd(*z, T=2.0)
    close(c.topk_kl(*z, k=C, T=2.0), forward)
    close(c.topk_kl(*z, k=C, T=2.0, tail="drop"), forward)
    bounds = [float(c.topk_kl(*z, k=k, T=2.0)) for k in range(1, C + 1)]
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise([*bounds, float(forward)]))


@pytest.mark.parametrize("k", [3, C])
def test_a_stored_teacher_gives_the_same(z, k) -> None:
    log_p, indices = torch.log_softmax(z[1] / 2, 1).topk(k, 1)
    for tail in ("bucket", "drop"):
        stored = c.sparse_kl(z[0], indices, log_p, T=2.0, tail=tail)
        close(stored, c.topk_kl(*z, k=k, T=2.0, tail=tail))
        single = c.sparse_kl(z[0].float(), indices, log_p.float(), T=2.0, tail=tail)
        torch.testing.assert_close(single, stored.float())


def test_cka_invariances() -> None:
    g = torch.Generator().manual_seed(5)
    f_s = torch.randn(12, 6, generator=g, dtype=torch.float64)
    f_t = torch.randn(12, 9, generator=g, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    for debiased in (False, True):
        value = c.cka(f_s, f_t, debiased=debiased)
        close(c.cka(3.7 * f_s @ rotation, f_t, debiased=debiased), value)
        close(c.cka(f_s + 5, f_t, debiased=debiased), value, 1e-10)
    # Few features: the D x D form; many: the N x N form.
    wide = torch.cat([f_t, torch.zeros(12, 40, dtype=torch.float64)], 1)
    close(c.cka(f_s, wide), c.cka(f_s, f_t))


def test_soft_ce_is_kd_plus_entropy(z) -> None:
    entropy = torch.special.entr((z[1] / 2).softmax(1)).sum(1).mean()
    close(c.soft_ce(*z, T=2.0), c.kd(*z, T=2.0) + 4 * entropy)


def test_row_temperatures_and_one_number_agree(z, y) -> None:
    T = torch.full((N,), 2.0, dtype=torch.float64)
    for criterion in (c.kd, c.gjsd, c.reverse_kl, c.logit_mse, c.soft_ce, c.tvd, c.renyi):
        close(criterion(*z, T=T), criterion(*z, T=2.0))
    for criterion in (c.dkd, c.nkd, c.wsld, c.pld):
        close(criterion(*z, y, T=T), criterion(*z, y, T=2.0))


def test_entropy_weights(z) -> None:
    assert c.entropy_weight(*z, gamma=0.0).eq(1).all()
    certain, unsure = torch.tensor([[9.0, 0.0]]), torch.zeros(1, 2)
    both = torch.cat([certain, unsure])
    weight = c.entropy_weight(both, both)
    assert weight[0] < weight[1]
    close(weight.mean(), torch.ones(()), 1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_relations_do_not_see_rotations(normalize) -> None:
    g = torch.Generator().manual_seed(6)
    f_s, f_t = torch.randn(2, 5, 4, generator=g, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64)).Q
    for criterion in (c.rkd_d, c.rkd_a):
        close(
            criterion(f_s @ rotation, f_t, normalize=normalize),
            criterion(f_s, f_t, normalize=normalize),
            1e-10,
        )
    close(c.rkd_a(2 * f_s + 7, f_t), c.rkd_a(f_s, f_t), 1e-10)
