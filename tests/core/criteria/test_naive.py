"""Each criterion against its naive form, values and gradients in float64."""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch

from potstill.core import criteria as c

_SPEC = importlib.util.spec_from_file_location("naive", Path(__file__).with_name("naive.py"))
naive = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(naive)

ROWS = {
    "kd": c.kd,
    "soft_ce": c.soft_ce,
    "logit_mse": c.logit_mse,
    "logit_std": c.logit_std,
    "wsld": c.wsld,
    "mft": c.mft,
    "dkd": c.dkd,
    "nkd": c.nkd,
    "dist": c.dist,
    "gjsd": c.gjsd,
    "reverse_kl": c.reverse_kl,
    "skew_fkl": c.skew_fkl,
    "skew_rkl": c.skew_rkl,
    "tvd": c.tvd,
    "bdkd": c.bdkd,
    "alpha_beta": c.alpha_beta,
    "renyi": c.renyi,
    "amari": c.amari,
    "taid": functools.partial(c.taid, tau=0.4),
    "pld": c.pld,
    "topk_kl": functools.partial(c.topk_kl, k=10),
}


def value_and_gradient(criterion, x, *others):
    x = x.clone().requires_grad_()
    value = criterion(x, *others)
    value.backward()
    return value.detach(), x.grad


@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "plain"])
@pytest.mark.parametrize("name", ROWS)
def test_rows(name, blocked) -> None:
    g = torch.Generator().manual_seed(7)
    z_s, z_t = 2 * torch.randn(2, 9, 33, generator=g, dtype=torch.float64)
    y = torch.randint(0, 33, (9,), generator=g)
    ours = value_and_gradient(functools.partial(ROWS[name], blocked=blocked), z_s, z_t, y)
    tolerance = 1e-6 if name == "mft" else 1e-9  # mft keeps its authors' eps
    expected = value_and_gradient(getattr(naive, name), z_s, z_t, y)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "plain"])
def test_rkd(blocked) -> None:
    f_s, f_t = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(7)).double()
    angle = functools.partial(c.rkd_a, blocked=blocked)
    for ours, theirs in ((c.rkd_d, naive.rkd_d), (angle, naive.rkd_a)):
        found, expected = (value_and_gradient(f, f_s, f_t) for f in (ours, theirs))
        torch.testing.assert_close(found[0], expected[0])
        # The naive norm has no gradient at distance 0: the diagonal spoils it there.
        torch.testing.assert_close(found[1], expected[1].nan_to_num(), rtol=1e-7, atol=1e-9)


def test_equal_items_have_no_angle() -> None:
    f_s, f_t = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(8)).double()
    f_s[1] = f_s[0]
    found, expected = (value_and_gradient(f, f_s, f_t)[0] for f in (c.rkd_a, naive.rkd_a))
    torch.testing.assert_close(found, expected)
