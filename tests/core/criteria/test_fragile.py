"""F1 to F25 of the design note: inputs on which public implementations give inf or NaN."""

import functools
import math

import pytest
import torch

from potstill.core import criteria as c

INF = math.inf
of = functools.partial


def run(criterion, z_s, *others, dtype=torch.float32):
    """Value and gradient for inputs given as lists."""
    z_s = torch.as_tensor(z_s).to(dtype).clone().requires_grad_()
    others = [torch.as_tensor(x) for x in others]
    others = [x.to(dtype) if x.is_floating_point() else x for x in others]
    value = criterion(z_s, *others)
    value.backward()
    return value.detach(), z_s.grad


def finite(criterion, *inputs, dtype=torch.float32):
    value, gradient = run(criterion, *inputs, dtype=dtype)
    assert value.isfinite(), value
    assert gradient.isfinite().all(), gradient
    return value, gradient


Y = torch.tensor([0])
blocked_and_plain = pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "plain"])


@blocked_and_plain
@pytest.mark.parametrize(
    ("z_s", "dtype", "value", "rtol"),
    [
        pytest.param([-200.0, 0.0, 1.0], torch.float32, 196.2780615609786, 1e-5, id="F1"),
        pytest.param([200.0, 0.0, 1.0], torch.float32, 4.741297895705829, 1e-5, id="F2"),
        pytest.param([-20.0, 0.0, 1.0], torch.float16, 20.677485671543387, 1e-2, id="F3"),
    ],
)
def test_dkd_underflow(z_s, dtype, value, rtol, blocked) -> None:
    criterion = of(c.dkd, T=1.0, blocked=blocked)
    found, _ = finite(criterion, [z_s], [[5.0, 0.0, 1.0]], Y, dtype=dtype)
    torch.testing.assert_close(float(found), value, rtol=rtol, atol=0)


@blocked_and_plain
@pytest.mark.parametrize(
    ("z_s", "z_t", "T"),
    [
        pytest.param([1500.0, 0.0, 1.0], [1500.0, 0.0, 3.0], 1.0, id="F4"),
        pytest.param([12.0, 0.0, 0.01], [12.0, 0.0, 0.03], 0.01, id="F5"),
    ],
)
def test_the_label_is_really_left_out(z_s, z_t, T, blocked) -> None:
    criterion = of(c.dkd, alpha=0.0, beta=1.0, T=T, t_squared=False, blocked=blocked)
    value, _ = finite(criterion, [z_s], [z_t], Y)
    torch.testing.assert_close(float(value), 0.169823, rtol=1e-4, atol=0)


SHARED = {
    "kd": c.kd,
    "soft_ce": c.soft_ce,
    "logit_mse": c.logit_mse,
    "logit_std": c.logit_std,
    "nkd": of(c.nkd, target=torch.tensor([0, 0])),
    "nkd, T 2": of(c.nkd, target=torch.tensor([0, 2]), T=2.0),
    "dkd": of(c.dkd, target=torch.tensor([0, 2])),
    "wsld": of(c.wsld, target=torch.tensor([0, 2])),
    "mft": of(c.mft, target=torch.tensor([0, 2])),
    "gjsd": c.gjsd,
    "gjsd 0": of(c.gjsd, beta=0.0),
    "reverse_kl": c.reverse_kl,
    "skew_fkl": c.skew_fkl,
    "skew_rkl": c.skew_rkl,
    "tvd": c.tvd,
    "bdkd": c.bdkd,
    "alpha_beta": c.alpha_beta,
    "alpha_beta 1, 0": of(c.alpha_beta, alpha=1.0, beta=0.0),
    "alpha_beta 1, -1": of(c.alpha_beta, alpha=1.0, beta=-1.0),
    "renyi": of(c.renyi, alpha=2.0),
    "amari": of(c.amari, alpha=-1.0),
    "dist": c.dist,
    "pld": of(c.pld, target=torch.tensor([0, 2])),
    "taid": of(c.taid, tau=0.3),
    "taid 0": of(c.taid, tau=0.0),
    "taid 1": of(c.taid, tau=1.0),
    "topk_kl": of(c.topk_kl, k=2),
}


@blocked_and_plain
@pytest.mark.parametrize("name", SHARED)
def test_f6_f9_class_masked_in_both_is_as_if_absent(name, blocked) -> None:
    criterion = of(SHARED[name], blocked=blocked)
    z_s = torch.tensor([[1.0, -INF, 0.0], [0.3, -INF, 0.9]])
    z_t = torch.tensor([[2.0, -INF, 0.5], [0.1, -INF, 0.4]])
    value, gradient = finite(criterion, z_s, z_t)
    assert gradient[:, 1].eq(0).all()
    if name != "logit_mse":  # its mean is over all classes
        y = getattr(SHARED[name], "keywords", {}).get("target")
        shorter = criterion if y is None else of(criterion, target=torch.where(y == 2, 1, y))
        same, kept = run(shorter, z_s[:, [0, 2]], z_t[:, [0, 2]])
        torch.testing.assert_close(value, same, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient[:, [0, 2]], kept, rtol=1e-4, atol=1e-6)


@blocked_and_plain
@pytest.mark.parametrize("beta", [0.5, 0.0])
def test_f7_class_masked_in_the_teacher_only(beta, blocked) -> None:
    criterion = of(c.gjsd, beta=beta, blocked=blocked)
    finite(criterion, [[1.0, 0.5, 0.0]], [[2.0, -INF, 0.5]])


@blocked_and_plain
@pytest.mark.parametrize("criterion", [c.reverse_kl, c.bdkd, of(c.gjsd, beta=1.0)])
def test_f8_reverse_kl_of_the_impossible_is_infinite(criterion, blocked) -> None:
    criterion = of(criterion, blocked=blocked)
    value, gradient = run(criterion, [[1.0, 0.5, 0.0]], [[2.0, -INF, 0.5]])
    assert value == INF
    assert not gradient.isnan().any()


@blocked_and_plain
def test_forward_kl_of_the_impossible_is_infinite(blocked) -> None:
    value, gradient = run(of(c.kd, blocked=blocked), [[1.0, -INF, 0.0]], [[2.0, 0.5, 0.5]])
    assert value == INF
    assert not gradient.isnan().any()


def test_f10_dist_constant_row() -> None:
    z_t = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    some = z_t.flip(1) * torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    for z_s in (torch.zeros(4, 10), some, 3e-4 * z_t):  # the last one is just below the floor
        _, gradient = finite(c.dist, z_s, z_t)
        assert 0 < gradient.norm() <= 1e3
        forms = [of(c.dist, blocked=blocked) for blocked in (True, False)]
        found, expected = (finite(form, z_s, z_t, dtype=torch.float64) for form in forms)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("eps", [1e-7, 0.0], ids=["F11", "F12"])
@blocked_and_plain
def test_standardized_constant_row(eps, blocked) -> None:
    z_t = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    _, gradient = finite(of(c.logit_std, eps=eps, blocked=blocked), torch.full((4, 10), 3.0), z_t)
    assert 0 < gradient.norm() <= 1e3


def test_f13_distances_far_from_the_origin() -> None:
    noise = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    f_s = 1000 + 0.01 * noise
    f_t = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    for criterion in (c.rkd_d, c.rkd_a):
        value, _ = finite(criterion, f_s, f_t)
        exact = criterion(f_s.double(), f_t.double())  # the inputs as float32 holds them
        assert abs(float(value) / float(exact) - 1) < 1e-3


def test_f14_rkd_half_precision() -> None:
    f = 20 * torch.randn(2, 8, 512, generator=torch.Generator().manual_seed(0))
    for criterion in (c.rkd_d, c.rkd_a):
        finite(criterion, f[0], f[1], dtype=torch.float16)


@pytest.mark.parametrize(
    ("criterion", "rows"), [(c.rkd_d, 1), (c.rkd_a, 2), (c.sp, 1), (c.cka, 1), (c.pkt, 1)]
)
def test_f15_too_few_items(criterion, rows) -> None:
    with pytest.raises(ValueError, match="at least"):
        criterion(torch.ones(rows, 4), torch.ones(rows, 4))


def test_f16_half_precision_maps() -> None:
    f = torch.randn(2, 4, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    finite(c.sp, 10 * f[0], 10 * f[1], dtype=torch.float16)
    finite(c.at, 300 * f[0], 300 * f[1], dtype=torch.float16)


@pytest.mark.parametrize("debiased", [False, True])
def test_f17_cka_of_constant_features(debiased) -> None:
    f_t = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for criterion in (of(c.cka_similarity, debiased=debiased),):
        value, _ = finite(criterion, torch.ones(6, 3), f_t)
        assert value == 0


def test_f18_contrast_without_score() -> None:
    finite(of(c.crd_nce, num_data=50), [[0.0, 1.0, 2.0]])
    finite(c.info_nce, torch.zeros(3, 4), torch.eye(3, 4))


@pytest.mark.parametrize(
    "criterion",
    [c.mse, c.l1, c.cosine, c.sp, c.pkt, c.rkd_d, c.rkd_a, c.cka, c.cc, c.cckd, c.info_nce],
)
def test_f19_identical_features(criterion) -> None:
    f = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    finite(criterion, f, f)


@blocked_and_plain
@pytest.mark.parametrize("criterion", [c.gjsd, c.skew_fkl, c.skew_rkl])
def test_f20_log_of_probability_zero(criterion, blocked) -> None:
    criterion = of(criterion, blocked=blocked)
    finite(criterion, [[-200.0, 0.0, 1.0]], [[5.0, 0.0, 1.0]])
    finite(criterion, [[-200.0, 0.0, 1.0]], [[-200.0, 0.0, 0.5]])


@blocked_and_plain
@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.5, 0.0)])
def test_f21_alpha_beta_underflow(alpha, beta, blocked) -> None:
    criterion = of(c.alpha_beta, alpha=alpha, beta=beta, blocked=blocked)
    finite(criterion, [[-200.0, 0.0, 1.0]], [[5.0, 0.0, 1.0]])


@blocked_and_plain
@pytest.mark.parametrize("name", SHARED)
def test_f22_everything_masked(name, blocked) -> None:
    criterion = SHARED[name]
    z_s = torch.tensor([[1.0, math.nan, 0.0], [0.3, 2.0, 0.9]])
    ignored = torch.tensor([-100, -100])
    value, gradient = run(
        lambda s, t: criterion(s, t, target=ignored, blocked=blocked), z_s, torch.ones(2, 3)
    )
    assert value == 0
    assert gradient.eq(0).all()


@blocked_and_plain
def test_f23_student_as_perfect_as_the_teacher(blocked) -> None:
    z = [[200.0, 0.0, 0.0]]
    value, gradient = finite(of(c.wsld, blocked=blocked), z, z, Y)
    assert value == 0
    assert gradient.eq(0).all()


@blocked_and_plain
def test_f24_half_precision_at_low_temperature(blocked) -> None:
    criterion = of(c.kd, T=1e-3, blocked=blocked)
    finite(criterion, [[70.0, 0.0, 1.0]], [[69.0, 0.0, 1.0]], dtype=torch.float16)


def test_f25_paper_form_attention_at_the_minimum() -> None:
    f = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    value, gradient = finite(of(c.at, form="paper"), f, f)
    assert value == 0
    assert gradient.eq(0).all()


@blocked_and_plain
def test_nan_in_nan_out(blocked) -> None:
    value, _ = run(of(c.kd, blocked=blocked), [[math.nan, 0.0], [1.0, 0.0]], [[1.0, 0.0]] * 2)
    assert value.isnan()
