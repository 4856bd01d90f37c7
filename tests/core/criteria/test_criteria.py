"""What holds for every criterion: gradients, forms, precisions, masks, errors, no side effects."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.core import criteria as c
from potstill.core.criteria import blocks
from potstill.core.errors import ConfigError, ShapeError
from potstill.core.testing import assert_criterion

of = functools.partial
N, C = 5, 6
Y = torch.tensor([0, 3, 5, 1, 2])

ROWS = {
    "kd": c.kd,
    "kd, no T^2": of(c.kd, t_squared=False),
    "soft_ce": of(c.soft_ce, T=2.0),
    "logit_mse": of(c.logit_mse, T=2.0),
    "logit_std": c.logit_std,
    "wsld": of(c.wsld, target=Y),
    "mft": of(c.mft, target=Y),
    "dkd": of(c.dkd, target=Y),
    "dkd, rows": of(c.dkd, target=Y, alpha=torch.rand(N), beta=torch.rand(N)),
    "nkd": of(c.nkd, target=Y),
    "nkd, T 2": of(c.nkd, target=Y, T=2.0),
    "gjsd": of(c.gjsd, T=2.0),
    "gjsd 0.1": of(c.gjsd, beta=0.1),
    "gjsd 0": of(c.gjsd, beta=0.0),
    "gjsd 1": of(c.gjsd, beta=1.0),
    "reverse_kl": of(c.reverse_kl, T=2.0),
    "skew_fkl": of(c.skew_fkl, T=2.0),
    "skew_rkl": of(c.skew_rkl, T=2.0),
    "tvd": of(c.tvd, T=2.0),
    "bdkd": of(c.bdkd, T=2.0),
    "alpha_beta": of(c.alpha_beta, T=2.0),
    "alpha_beta 0.5, 0": of(c.alpha_beta, alpha=0.5, beta=0.0),
    "alpha_beta 0, 0.5": of(c.alpha_beta, alpha=0.0, beta=0.5),
    "alpha_beta 0, 0": of(c.alpha_beta, alpha=0.0, beta=0.0),
    "alpha_beta 1, -1": of(c.alpha_beta, alpha=1.0, beta=-1.0),
    "renyi": of(c.renyi, T=2.0),
    "amari": of(c.amari, T=2.0, alpha=2.0),
    "pld": of(c.pld, target=Y),
    "taid": of(c.taid, tau=0.4),
    "topk_kl": of(c.topk_kl, k=3, T=2.0),
    "topk_kl, drop": of(c.topk_kl, k=3, tail="drop"),
}
FEATURES = {
    "mse": (c.mse, (N, 4), (N, 4)),
    "smooth_l1": (c.smooth_l1, (N, 4), (N, 4)),
    "hint": (c.hint, (N, 4), (N, 4)),
    "cosine": (c.cosine, (N, 4), (N, 4)),
    "at": (c.at, (2, 3, 6, 6), (2, 4, 3, 3)),
    "at, paper": (of(c.at, form="paper"), (2, 3, 4, 4), (2, 5, 4, 4)),
    "cwd": (c.cwd, (2, 3, 4, 4), (2, 3, 4, 4)),
    "pkd": (c.pkd, (2, 3, 4, 4), (2, 3, 4, 4)),
    "ickd": (c.ickd, (2, 3, 4, 4), (2, 3, 2, 2)),
    "nst": (c.nst, (2, 3, 4, 4), (2, 5, 2, 2)),
    "review_hcl": (c.review_hcl, (2, 3, 5, 5), (2, 3, 5, 5)),
    "sp": (c.sp, (N, 4), (N, 7)),
    "pkt": (c.pkt, (N, 4), (N, 7)),
    "cckd": (c.cckd, (N, 4), (N, 7)),
    "cka": (c.cka, (N, 4), (N, 7)),
    "cka, few features": (c.cka, (9, 2), (9, 3)),
    "cka, debiased": (of(c.cka, debiased=True), (N, 4), (N, 7)),
    "rkd_d": (c.rkd_d, (N, 4), (N, 7)),
    "rkd_a": (c.rkd_a, (N, 4), (N, 7)),
    "rkd_a, plain": (of(c.rkd_a, blocked=False), (N, 4), (N, 7)),
    "rkd_a, normalize": (of(c.rkd_a, normalize=True), (N, 4), (N, 7)),
    "token_relation": (of(c.token_relation, T=0.5), (2, 3, 4), (2, 3, 5)),
    "token_relation, mse": (of(c.token_relation, kind="mse"), (2, 3, 4), (2, 3, 5)),
    "info_nce": (of(c.info_nce, T=0.5, symmetric=True), (N, 4), (N, 4)),
}


@pytest.fixture
def g():
    return torch.Generator().manual_seed(11)


@pytest.fixture
def z(g):
    return 2 * torch.randn(2, N, C, generator=g, dtype=torch.float64)


def value_and_gradient(criterion, z_s, *others):
    z_s = z_s.detach().clone().requires_grad_()
    value = criterion(z_s, *others)
    value.sum().backward()
    return value.detach(), z_s.grad


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "plain"])
@pytest.mark.parametrize("name", ROWS)
def test_rows(name, blocked, z) -> None:
    # wsld weighs by detached losses and taid aims at its own detached output: what finite
    # differences see is another function.
    exact = name not in ("wsld", "taid", "bdkd")
    assert_criterion(of(ROWS[name], blocked=blocked), z[0], z[1], gradcheck=exact)


@pytest.mark.parametrize("name", FEATURES)
def test_features(name, g) -> None:
    criterion, student, teacher = FEATURES[name]
    f_s, f_t = torch.randn(student, generator=g), torch.randn(teacher, generator=g)
    assert_criterion(criterion, f_s, f_t)


@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "plain"])
def test_dist(z, blocked) -> None:
    for criterion in (c.dist, of(c.dist, beta=2.0, gamma=0.5, T=4.0), of(c.dist, gamma=0.0)):
        assert_criterion(of(criterion, blocked=blocked), z[0], z[1])


def test_cc_and_fsp(g) -> None:
    assert_criterion(c.cc, *torch.randn(2, N, 4, generator=g))
    a_s, a_t = torch.randn(2, 2, 3, 6, 6, generator=g)
    b_s, b_t = torch.randn(2, 2, 4, 3, 3, generator=g)
    assert_criterion(lambda s, t: c.fsp((s, b_s.to(s)), (t, b_t.to(t))), a_s, a_t)


def test_crd_nce(g) -> None:
    assert_criterion(of(c.crd_nce, num_data=50), torch.rand(4, 6, generator=g) + 0.1, constant=())


def test_queue_relation(g) -> None:
    f_s, f_t = torch.randn(2, N, 4, generator=g)
    queue = F.normalize(torch.randn(9, 4, generator=g))
    assert_criterion(of(c.queue_relation, T=0.5), f_s, f_t, queue, constant=(1, 2))


def test_both_sides_learn_when_asked(z) -> None:
    for criterion in (c.kd, c.bdkd, of(c.dkd, target=Y), c.dist):
        for blocked in (True, False):
            z_s, z_t = (a.clone().requires_grad_() for a in z)
            criterion(z_s, z_t, teacher_grad=True, blocked=blocked).backward()
            assert z_t.grad.any()
    assert torch.autograd.gradcheck(
        lambda s, t: c.kd(s, t, teacher_grad=True), tuple(a.clone().requires_grad_() for a in z)
    )


# --- one value, whatever the form -----------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_blocks_change_nothing(name, z, monkeypatch) -> None:
    """Blocks of one row, blocks of all rows, and the reference agree, row by row too."""
    plain = value_and_gradient(of(ROWS[name], blocked=False), *z)
    for size in (1, 2 * C, 1 << 20):
        monkeypatch.setitem(blocks.BLOCK, "cpu", size)
        for reduction in ("mean", "none"):
            found = value_and_gradient(of(ROWS[name], reduction=reduction), *z)
            factor = 1 if reduction == "mean" else N
            assert found[0].shape == (() if reduction == "mean" else (N,))
            torch.testing.assert_close(found[0].mean(), plain[0])
            torch.testing.assert_close(found[1], factor * plain[1])


def test_dist_and_angles_in_blocks(z, g, monkeypatch) -> None:
    f_s, f_t = torch.randn(2, 7, 4, generator=g, dtype=torch.float64)
    for criterion, pair in ((c.dist, z), (c.rkd_a, (f_s, f_t))):
        plain = value_and_gradient(of(criterion, blocked=False), *pair)
        for size in (1, 20, 1 << 20):
            monkeypatch.setitem(blocks.BLOCK, "cpu", size)
            torch.testing.assert_close(value_and_gradient(criterion, *pair), plain)


def test_upstream_gradients_and_second_backwards(z) -> None:
    once = value_and_gradient(c.kd, *z)[1]
    z_s = z[0].clone().requires_grad_()
    value = c.kd(z_s, z[1])
    (0.25 * value).backward(retain_graph=True)
    torch.testing.assert_close(z_s.grad, 0.25 * once)
    value.backward()  # the gradient of the forward pass is spent: it is computed anew
    torch.testing.assert_close(z_s.grad, 1.25 * once)


def test_double_backward_needs_the_plain_form(z) -> None:
    z_s = z[0].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="blocked=False"):
        torch.autograd.grad(c.kd(z_s, z[1]) + z_s.square().sum(), z_s, create_graph=True)
    assert torch.autograd.gradgradcheck(lambda s: c.kd(s, z[1], blocked=False), (z_s,))


@pytest.mark.parametrize("name", ["kd", "dkd", "nkd", "gjsd", "pld", "reverse_kl", "renyi"])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_precision(name, classes, g) -> None:
    z_s, z_t = 3 * torch.randn(2, N, classes, generator=g, dtype=torch.float64)
    criterion = ROWS[name]
    if "target" in getattr(criterion, "keywords", {}):
        criterion = of(criterion, target=Y % classes)
    value, gradient = value_and_gradient(criterion, z_s, z_t)
    single = value_and_gradient(criterion, z_s.float(), z_t.float())
    torch.testing.assert_close(single[0].double(), value, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(single[1].double(), gradient, rtol=1e-4, atol=1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        half = value_and_gradient(criterion, z_s.to(dtype), z_t.to(dtype))
        exact = value_and_gradient(criterion, z_s.to(dtype).double(), z_t.to(dtype).double())
        assert half[1].dtype == dtype
        torch.testing.assert_close(half[0].double(), exact[0], rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(half[1].double(), exact[1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*ROWS, "dist"])
def test_gradients_of_half_precision_are_those_of_float64(name, dtype, z, monkeypatch) -> None:
    """Under a loss scale, of a mean over as many rows as would make each share underflow."""
    monkeypatch.setitem(blocks.BLOCK, "cpu", 2 * C)
    criterion, scale, share = ROWS.get(name, c.dist), 65536.0, 2.0**-20
    z_s, z_t = (a.to(dtype) for a in z)
    _, exact = value_and_gradient(criterion, z_s.double(), z_t.double())
    if name == "dist":
        _, half = value_and_gradient(lambda *pair: scale * share * criterion(*pair), z_s, z_t)
    else:
        weight = torch.full((N,), share / N)
        summed = of(criterion, weight=weight, reduction="sum")
        _, half = value_and_gradient(lambda *pair: scale * summed(*pair), z_s, z_t)
    bound = 4 * torch.finfo(dtype).eps * exact.abs().amax(1, keepdim=True)
    # What is handed out may be a subnormal number: half a step of those, scaled back.
    bound += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / (scale * share)
    assert ((half.double() / (scale * share) - exact).abs() <= bound).all()


@pytest.mark.parametrize("name", ["kd", "soft_ce", "gjsd", "reverse_kl", "dkd"])
def test_gradients_of_fp16_do_not_vanish(name, g) -> None:
    z_s, z_t = (3 * torch.randn(2, 256, 1000, generator=g)).half()
    criterion = getattr(c, name)
    labels = torch.randint(0, 1000, (256,), generator=g)
    rows = torch.full((256,), 1 / 4096)  # as in a batch of 4096, of which these are the first
    _, found = value_and_gradient(
        lambda *pair: 65536.0 * criterion(*pair, labels, weight=rows, reduction="sum"), z_s, z_t
    )
    assert (found == 0).float().mean() < 0.005


# --- rows that count ------------------------------------------------------------------------------


@pytest.mark.parametrize("blocked", [True, False], ids=["blocked", "plain"])
@pytest.mark.parametrize("name", ["kd", "dkd", "gjsd", "pld", "nkd", "topk_kl", "taid"])
def test_ignored_rows_are_as_if_absent(name, blocked, z) -> None:
    y = torch.tensor([0, -100, 5, -100, 2])
    kept = y != -100
    noisy = z.clone()
    noisy[:, ~kept] = torch.nan
    keywords = {k: v for k, v in getattr(ROWS[name], "keywords", {}).items() if k != "target"}
    criterion = of(getattr(ROWS[name], "func", ROWS[name]), blocked=blocked, **keywords)
    value, gradient = value_and_gradient(of(criterion, target=y), *noisy)
    expected = value_and_gradient(of(criterion, target=y[kept]), *z[:, kept])
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient[kept], expected[1])
    assert gradient[~kept].eq(0).all()


def test_dist_leaves_rows_out(z) -> None:
    y = torch.tensor([0, -100, 5, 1, 2])
    torch.testing.assert_close(c.dist(*z, y), c.dist(*z[:, y != -100]))


def test_weights(z) -> None:
    weight = torch.tensor([2.0, 0.0, 1.0, 0.5, 3.0], dtype=torch.float64)
    rows = c.kd(*z, reduction="none")
    torch.testing.assert_close(c.kd(*z, weight=weight), (rows * weight).sum() / weight.sum())
    torch.testing.assert_close(c.kd(*z, weight=weight, reduction="sum"), (rows * weight).sum())
    learned = (weight + 1).requires_grad_()
    c.kd(*z, weight=learned, reduction="sum").backward()
    torch.testing.assert_close(learned.grad, rows)


def test_class_axis_and_leading_axes(g) -> None:
    z_s, z_t = torch.randn(2, 2, C, 3, 4, generator=g)
    y = torch.randint(0, C, (2, 3, 4), generator=g)
    y[0, 0] = -100
    flat = [a.movedim(1, -1).reshape(-1, C) for a in (z_s, z_t)]
    for criterion in (c.kd, c.dkd, c.dist):
        torch.testing.assert_close(
            criterion(z_s, z_t, y, dim=1), criterion(*flat, y.reshape(-1)), rtol=1e-5, atol=1e-6
        )


@settings(max_examples=30, deadline=None)
@given(
    shift=st.floats(-1e3, 1e3),
    scale=st.floats(0.1, 30),
    seed=st.integers(0, 1000),
    name=st.sampled_from(["kd", "gjsd", "dkd", "reverse_kl", "pld", "tvd", "skew_rkl"]),
)
def test_no_criterion_sees_a_shift_of_logits(shift, scale, seed, name) -> None:
    z = scale * torch.randn(
        2, N, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    value = ROWS[name](*z)
    torch.testing.assert_close(ROWS[name](z[0] + shift, z[1]), value, rtol=1e-8, atol=1e-8)
    assert value >= -1e-12


# --- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: c.kd(z, z[:, 1:]), ShapeError, r"kd: z_t must be \[5, 6\] .* got \[5, 5\]"),
        (lambda z: c.kd(z, z[1:]), ShapeError, r"\[5, 6\] .* got \[4, 6\]"),
        (lambda z: c.kd(z[:0], z[:0]), ShapeError, "at least one row"),
        (lambda z: c.kd(z, z, T=0.0), ConfigError, "T must be"),
        (lambda z: c.kd(z, z, T=-torch.ones(N)), ConfigError, "T must be"),
        (lambda z: c.kd(z, z, T=torch.ones(3)), ShapeError, "5 rows need 5 entries, got 3"),
        (lambda z: c.kd(z, z, reduction="batchmean"), ConfigError, "batchmean"),
        (lambda z: c.kd(z, z, weight=torch.ones(3)), ShapeError, "weight must be"),
        (lambda z: c.kd(z, z, Y[:3]), ShapeError, "target must be"),
        (lambda z: c.kd(z.long(), z.long()), ShapeError, "floating point"),
        (lambda z: c.dkd(z, z, Y + 4), ShapeError, "labels from 4 to 9"),
        (lambda z: c.dkd(z, z, z), ConfigError, "integer labels"),
        (lambda z: c.dkd(z[:, :1], z[:, :1], 0 * Y), ShapeError, "at least 2 classes"),
        (lambda z: c.gjsd(z, z, beta=1.5), ConfigError, "beta"),
        (lambda z: c.skew_fkl(z, z, lam=0.0), ConfigError, "lam"),
        (lambda z: c.topk_kl(z, z, k=C + 1), ConfigError, "k must be"),
        (lambda z: c.taid(z, z, tau=1.5), ConfigError, "tau"),
        (lambda z: c.mse(z, z[:, 1:]), ShapeError, "Projected"),
        (lambda z: c.mse(z, z, torch.ones(3)), ShapeError, "mask must be"),
        (lambda z: c.at(z, z), ShapeError, "4 axes"),
        (lambda z: c.sp(z, z[1:]), ShapeError, "5 items like f_s, got 4"),
        (lambda z: c.rkd_a(z[:2], z[:2]), ShapeError, "at least 3"),
        (lambda z: c.info_nce(z, z, T=0.0), ConfigError, "T must be"),
        (lambda z: c.entropy_weight(z, z, kind="x"), ConfigError, "kind"),
        (lambda z: c.Taid(0), ConfigError, "num_steps"),
        (lambda z: c.mlp(2, 3, depth=0), ConfigError, "depth"),
    ],
)
def test_misuse_is_named(call, error, message, z) -> None:
    with pytest.raises(error, match=message) as raised:
        call(z[0])
    assert isinstance(raised.value, ValueError)


def test_dist_of_one_row_says_what_it_leaves_out(z) -> None:
    with pytest.warns(UserWarning, match="nothing to correlate"):
        value = c.dist(z[0][:1], z[1][:1])
    torch.testing.assert_close(value, c.dist(z[0][:1], z[1][:1], gamma=0.0))


# --- tools of others ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ROWS, *FEATURES, "dist"])
def test_every_criterion_compiles_to_one_graph(name, z, g) -> None:
    criterion, pair = ROWS.get(name, c.dist), z
    if name in FEATURES:
        criterion, *shapes = FEATURES[name]
        pair = [torch.randn(shape, generator=g) for shape in shapes]
    torch.compiler.reset()
    compiled = torch.compile(criterion, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*pair), criterion(*pair))


@pytest.mark.parametrize("name", ["kd", "dkd", "pld", "dist"])
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_a_mask_compiles_to_one_graph(name, kept, z) -> None:
    y = Y.clone()
    y[kept:] = -100
    torch.compiler.reset()
    compiled = torch.compile(getattr(c, name), backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dist of a single row says what it leaves out
        expected = getattr(c, name)(*z, y)
    torch.testing.assert_close(compiled(*z, y), expected)


@pytest.mark.parametrize("name", ["kd", "dkd", "gjsd", "nkd"])
def test_export_takes_the_plain_form(name, z) -> None:
    criterion = ROWS[name]

    class Module(nn.Module):
        def forward(self, z_s, z_t):
            return criterion(z_s, z_t)

    exported = torch.export.export(Module(), tuple(z)).module()
    torch.testing.assert_close(exported(*z), criterion(*z))


def test_projectors(g) -> None:
    maps = torch.randn(2, 3, 4, 4, generator=g)
    assert c.conv1x1(3, 5)(maps).shape == (2, 5, 4, 4)
    assert c.conv1x1(3, 5, norm=False).bias is not None
    assert c.Resize((2, 2))(maps).shape == (2, 3, 2, 2)
    assert c.mlp(3, 5, depth=3)(torch.ones(2, 3)).shape == (2, 5)
    tokens = torch.randn(2, 7, 6, generator=g)
    assert c.AttentionProjector(6, 8, num_tokens=4)(tokens).shape == (2, 4, 8)
    criterion = c.Projected(nn.Linear(6, 8), c.hint)
    criterion(tokens, torch.zeros(2, 7, 8)).backward()
    assert criterion.projector.weight.grad.any()


def test_no_gradient_no_work(z) -> None:
    with torch.no_grad():
        value = c.kd(*z)
    assert not value.requires_grad
    torch.testing.assert_close(value, c.kd(*z, blocked=False))


@pytest.mark.parametrize("criterion", [c.kd, c.soft_ce, c.gjsd, c.logit_std, c.dist])
def test_dense_logits_must_name_their_class_axis(criterion):
    torch.manual_seed(0)
    z_s, z_t = torch.randn(2, 2, 5, 3, 4).unbind()  # [N C H W]
    with pytest.raises(ShapeError, match=r"dim must name the class axis of logits \[2, 5, 3, 4\]"):
        criterion(z_s, z_t)
    rows = [z.permute(0, 2, 3, 1).reshape(-1, 5) for z in (z_s, z_t)]
    torch.testing.assert_close(criterion(z_s, z_t, dim=1), criterion(*rows))
    last = [z.permute(0, 2, 3, 1) for z in (z_s, z_t)]
    torch.testing.assert_close(criterion(*last, dim=-1), criterion(*rows))


def test_labels_of_dense_predictions_are_shaped_like_their_rows():
    z = torch.randn(2, 5, 3, 4)
    with pytest.raises(ShapeError, match=r"target must be \[2, 3, 4\] like the rows"):
        c.kd(z, z, torch.zeros(2, 5, 3, dtype=torch.long), dim=1)
    c.kd(z, z, torch.zeros(2, 3, 4, dtype=torch.long), dim=1)


def test_weights_of_dense_predictions_name_their_class_axis(g):
    z_s, z_t = torch.randn(2, 2, 5, 3, 4, generator=g)
    with pytest.raises(ShapeError, match="entropy_weight: dim must name the class axis"):
        c.entropy_weight(z_s, z_t)
    with pytest.raises(ShapeError, match="entropy_weight: z_t must be"):
        c.entropy_weight(z_s, z_t[:1], dim=1)
    last = [z.movedim(1, -1) for z in (z_s, z_t)]
    weight = c.entropy_weight(z_s, z_t, dim=1)
    assert weight.shape == (2, 3, 4)
    torch.testing.assert_close(weight, c.entropy_weight(*last, dim=-1))
    c.kd(z_s, z_t, weight=weight, dim=1)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: numbers that are asked for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*ROWS, "dist"])
def test_no_block_waits_for_the_device(name, z, monkeypatch) -> None:
    def waits(size):
        monkeypatch.setitem(blocks.BLOCK, "cpu", size)
        with Waits() as waits:
            value_and_gradient(ROWS.get(name, c.dist), *z)
        return waits.count

    assert waits(1) == waits(1 << 20)
