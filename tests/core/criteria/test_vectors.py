"""Every stored vector: values and gradients that other projects, or a formula, gave in float64."""

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.core import criteria as c
from potstill.core.store.data import root
from potstill.core.testing import requires_data

VECTORS = "core/loss_vectors.json"
FILE = root() / VECTORS
STORED = json.loads(FILE.read_text()) if FILE.exists() else {"cases": [], "inputs": {}}
# Tested where they live: schemes, TAID's state, LELP, TGeo, quantizers.
ELSEWHERE = {
    "taid_schedule",
    "crd_nce",
    "acceptance_rate",
    "ensemble_soft_ce",
    "self_distillation_krr",
    "tgeo_state",
    "mixup",
    "lelp_nullspace_pca",
    "uniform_quantize_linear_scaling",
    "nonuniform_quantize_and_level_gradient",
    "flexible_dual_binarization",
}


def tensor(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def stored(key: str, part: str) -> Tensor:
    return tensor(STORED["inputs"][key][part])


def labels(case) -> Tensor:
    return torch.tensor(STORED["inputs"][case["input"]]["target"])


def teacher_entropy(z_t: Tensor) -> Tensor:
    return torch.special.entr(z_t.softmax(-1)).sum(-1).mean()


def row_wise(case):
    """Our criterion for a case on logits, as ``f(z_s, z_t, blocked=)``."""
    p, y = case["params"], labels(case)
    peer = case["source"]["project"]
    if case["name"] == "dist" and peer.startswith("torchdistill"):
        p = {**p, "eps": 0.0}  # it clamps the norms instead of adding, which changes nothing here

    def with_ce(f, a, b):
        return lambda s, t, **o: a * F.cross_entropy(s, y) + b * f(s, t, **o)

    def plus(f, extra):
        return lambda s, t, **o: f(s, t, **o) + extra(t)

    of = functools.partial
    raw = of(c.logit_std, T=1.0, t_squared=False, eps=0.0)
    return {
        "kd": lambda: of(c.kd, T=p["T"]),
        "kd_batchmean": lambda: of(c.kd, T=p["T"]),
        "kd_hinton_total": lambda: with_ce(of(c.kd, T=4.0), 0.1, 0.9),
        "kd_logit_std": lambda: with_ce(of(c.logit_std, T=2.0), 0.1, 9.0),
        "kd_mse_logits": lambda: of(c.logit_mse, T=p["T"]),
        "kd_ce_no_T2": lambda: of(c.soft_ce, T=p["T"], t_squared=False),
        "soft_ce": lambda: of(c.soft_ce, T=p["T"]),
        "mixstd": lambda: raw,
        "mixstd_cls": lambda: lambda s, t, **o: F.cross_entropy(s / c.row_std(s)[:, None], y),
        "wsld": lambda: of(c.wsld, target=y, T=p["T"]),
        "mft": lambda: of(c.mft, target=y, **p),
        "dkd": lambda: of(c.dkd, target=y, **p),
        "nkd": lambda: of(c.nkd, target=y, **p),
        "dist": lambda: of(c.dist, **p),
        "generalized_jsd": lambda: of(c.gjsd, t_squared=False, **p),
        "ssld_js": lambda: c.gjsd,
        "reverse_kl": lambda: c.reverse_kl,
        "tvd": lambda: c.tvd,
        "skew_forward_kl_ce": lambda: plus(of(c.skew_fkl, **p), teacher_entropy),
        "skew_reverse_kl": lambda: of(c.skew_rkl, **p),
        "alpha_beta": lambda: of(c.alpha_beta, **p),
        "renyi": lambda: of(c.renyi, **p),
        "amari_alpha": lambda: of(c.amari, **p),
        "bdkd_student": lambda: of(c.bdkd, **p),
        "bdkd_third_party": lambda: (
            lambda s, t, **o: c.bdkd(s, t, delta=3.0, **o) + third_party_entropy(s, t)
        ),
        "taid": lambda: of(c.taid, tau=p["t"]),
        "pld": lambda: of(c.pld, target=y, T=p.get("teacher_T", 1.0)),
    }[case["name"]]()


def third_party_entropy(z_s: Tensor, z_t: Tensor) -> Tensor:
    """What a third-party BD-KD adds: its forward part is a cross-entropy."""
    h_s, h_t = (torch.special.entr(z.detach().softmax(-1)).sum(-1) for z in (z_s, z_t))
    return (torch.where(h_t > h_s, 3.0, 1.0) * h_t).mean()


def featural(case):
    """Our criterion for a case on features."""
    p, of = case["params"], functools.partial
    mask = stored("seq", "mask").bool()
    return {
        "at": c.at,
        "at_paper": of(c.at, form="paper"),
        "rkd_distance": c.rkd_d,
        "rkd_distance_l2norm": of(c.rkd_d, normalize=True),
        "rkd_angle": c.rkd_a,
        "sp": c.sp,
        "pkt": c.pkt,
        "cc": c.cc,
        "cckd_gaussian": c.cckd,
        "cka_linear": c.cka_similarity,
        "cka_linear_debiased": of(c.cka_similarity, debiased=True),
        "ickd": c.ickd,
        "ickd_td": of(c.ickd, per_batch="N2"),
        "cwd": of(c.cwd, **p),
        "pkd": c.pkd,
        "nst": c.nst,
        "review_hcl": c.review_hcl,
        "hint_mse": c.hint,
        "fsp": lambda s, t: c.fsp(
            (s, stored("maps_pair", "student2")), (t, stored("maps_pair", "teacher2"))
        ),
        "cos_embed": of(c.cosine, mask=mask),
        "hid_mse_masked": of(c.mse, mask=mask),
        "pkd_bert": lambda s, t: 2 * c.cosine(s[:, 0], t[:, 0]),
        "queue_kl": lambda s, t: c.queue_relation(s, t, stored("queue", "queue")),
        "token_relation_kl": c.token_relation,
    }[case["name"]]


def is_quirk(case) -> bool:
    return "quirk" in case["name"].lower()


def named(cases):
    return [pytest.param(case, id=f"{i}-{case['name']}") for i, case in enumerate(cases)]


CASES = [k for k in STORED["cases"] if not is_quirk(k) and k["name"] not in ELSEWHERE]


def agree(criterion, case) -> None:
    z_s = stored(case["input"], "student").requires_grad_()
    value = criterion(z_s, stored(case["input"], "teacher"))
    torch.testing.assert_close(value.item(), case["expected"], rtol=case["rtol"], atol=0)
    if "grad_student" in case:
        value.backward()
        expected = tensor(case["grad_student"])
        # A gradient that is 0 but for rounding (in a peer's float32, say) has no relative error.
        atol = case["rtol"] * max(float(expected.abs().max()), 0.01)
        torch.testing.assert_close(z_s.grad, expected, rtol=case["rtol"], atol=atol)


@requires_data(VECTORS)
@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "plain"])
@pytest.mark.parametrize("case", named([k for k in CASES if k["input"].startswith("logits")]))
def test_logits(case, blocked) -> None:
    criterion = row_wise(case)
    if case["name"] == "mixstd_cls" and not blocked:
        pytest.skip("one form only")
    agree(functools.partial(criterion, blocked=blocked), case)


@requires_data(VECTORS)
@pytest.mark.parametrize("case", named([k for k in CASES if not k["input"].startswith("logits")]))
def test_features(case) -> None:
    agree(featural(case), case)


@requires_data(VECTORS)
def test_angles_plain() -> None:
    case = next(k for k in CASES if k["name"] == "rkd_angle")
    agree(functools.partial(c.rkd_a, blocked=False), case)


@requires_data(VECTORS)
def test_crd_nce() -> None:
    case = next(k for k in STORED["cases"] if k["name"] == "crd_nce")
    scores = stored("crd", "out_pos_neg").requires_grad_()
    value = c.crd_nce(scores, 50)
    value.backward()
    torch.testing.assert_close(value.item(), case["expected"], rtol=1e-9, atol=0)
    torch.testing.assert_close(scores.grad, tensor(case["grad_out_pos_neg"]), rtol=1e-9, atol=0)


@requires_data(VECTORS)
def test_acceptance_rate_and_block_efficiency() -> None:
    case = next(k for k in STORED["cases"] if k["name"] == "acceptance_rate")
    rate = c.acceptance_rate(stored("logits_a", "student"), stored("logits_a", "teacher"))
    torch.testing.assert_close(rate, tensor(case["expected"]), rtol=1e-9, atol=0)
    efficiency = tensor(case["block_efficiency_gamma4"])
    torch.testing.assert_close(c.block_efficiency(rate, 4), efficiency, rtol=1e-9, atol=0)


@requires_data(VECTORS)
@pytest.mark.parametrize(
    ("quirk", "ours", "why"),
    [
        ("kd_no_T2_peer_quirk", functools.partial(c.kd, T=4.0), "T^2 stays whatever the mixture"),
        ("kd_elementmean_peer_quirk", functools.partial(c.kd, T=4.0), "a mean over rows, not N C"),
        ("sp_l1_rows_peer_quirk", c.sp, "rows are divided by their l2 norm"),
    ],
)
def test_quirks_are_not_copied(quirk, ours, why) -> None:
    case = next(k for k in STORED["cases"] if k["name"] == quirk)
    value = ours(stored(case["input"], "student"), stored(case["input"], "teacher"))
    factor = {"kd_no_T2_peer_quirk": 16, "kd_elementmean_peer_quirk": 7}.get(quirk)
    assert abs(value.item() / case["expected"] - 1) > 0.05, why
    if factor:  # and differs by just that
        torch.testing.assert_close(value.item(), factor * case["expected"], rtol=1e-9, atol=0)


@requires_data(VECTORS)
def test_every_case_is_tested_somewhere() -> None:
    for case in CASES:
        assert (row_wise if case["input"].startswith("logits") else featural)(case)
    assert {k["name"] for k in STORED["cases"]} >= ELSEWHERE


@requires_data(VECTORS)
@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", STORED.get("edge_cases", []), ids=lambda k: k["id"])
def test_edge_cases(case, dtype, blocked) -> None:
    p, y = dict(case["params"]), torch.tensor([case["target"]])
    of = functools.partial
    criterion = {
        "dkd": lambda: of(c.dkd, target=y, **p),
        "kd": lambda: of(c.kd, **p),
        "generalized_jsd": lambda: of(c.gjsd, **p),
        "pld": lambda: of(c.pld, target=y),
    }[case["loss"]]()
    z_s, z_t = (torch.tensor([[float(x) for x in case[k]]], dtype=dtype) for k in ("z_s", "z_t"))
    z_s.requires_grad_()
    value = criterion(z_s, z_t, blocked=blocked)
    value.backward()
    rtol = 1e-5 if dtype == torch.float32 else 1e-9
    if case["id"] == "F5" and dtype == torch.float32:
        rtol = 1e-4  # 0.03 - 0.01, a hundred times: the inputs themselves are rounded
    atol = 1e-7 if dtype == torch.float32 else 1e-12  # nats
    torch.testing.assert_close(value.item(), case["expected"], rtol=rtol, atol=atol)
    expected = torch.tensor([case["grad_student"]], dtype=dtype)
    torch.testing.assert_close(z_s.grad, expected, rtol=10 * rtol, atol=1e-7)
