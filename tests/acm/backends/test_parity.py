"""Every backend against a loop over tokens in float64, values and gradients."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.acm import Learners, backends
from potstill.acm.backends.learners import split_widths
from potstill.acm.backends.sorted_prefix import ROWS, sorted_prefix, tuner
from potstill.core.errors import BackendError, ConfigError, ShapeError

CPU = ("torch", "sorted_prefix", "gathered", "grouped_mm")
SHAPES = [(64, 24, 24, 4), (30, 16, 24, 4), (8, 8, 16, 1)]
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "relu": F.relu,
    "silu": F.silu,
    "identity": lambda z: z,
}


def make(hidden=64, inputs=24, outputs=24, count=4, activation="gelu", seed=0):
    rng = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=rng)
    return Learners(
        0.3 * draw(hidden, inputs), 0.1 * draw(hidden), 0.2 * draw(hidden, outputs),
        draw(outputs), split_widths(hidden, count), activation,
    )  # fmt: skip


def naive(x, choices, learners):
    """Token by token and learner by learner, as the paper writes it."""
    rows = []
    for z, k in zip(x.double(), choices.tolist(), strict=True):
        y = torch.zeros(len(learners.shift), dtype=torch.float64)
        for n in range(1, k + 1):
            units = slice(learners.bounds[n - 1], learners.bounds[n])
            hidden = ACTIVATIONS[learners.activation](
                learners.up[units].double() @ z + learners.bias[units].double()
            )
            y += hidden @ learners.down[units].double()
            if n == 1:
                y += learners.shift.double()
        rows.append(y)
    return torch.stack(rows)


def choices_of(kind, tokens, count):
    if kind == "random":
        return torch.randint(0, count + 1, (tokens,), generator=torch.Generator().manual_seed(3))
    if kind == "without 2":
        k = choices_of("random", tokens, count)
        return k.masked_fill(k == 2, 0)
    return torch.full((tokens,), 0 if kind == "all 0" else count)


KINDS = ("random", "all 0", "all N", "without 2")


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(backend, kind, shape):
    learners = make(*shape)
    x = torch.randn(70, shape[1])
    k = choices_of(kind, 70, shape[3])
    with torch.no_grad():
        y = backends.run(x, k, learners, backend)
    torch.testing.assert_close(y.double(), naive(x, k, learners), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_those_of_the_reference(backend, kind, shape):
    learners, x = make(*shape), torch.randn(50, shape[1])
    k = choices_of(kind, 50, shape[3])
    aim = torch.randn(50, shape[2])

    def gradients(name):
        leaves = [t.clone().requires_grad_() for t in (x, *learners[:4])]
        with_leaves = Learners(*leaves[1:], *learners[4:])
        loss = (backends.run(leaves[0], k, with_leaves, name) * aim).sum()
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]

    for mine, reference in zip(gradients(backend), gradients("torch"), strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)


def test_the_reference_passes_gradcheck():
    learners = make(8, 3, 4, 2)
    leaves = [t.double().requires_grad_() for t in learners[:4]]
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    k = torch.tensor([0, 1, 2, 2, 1])

    def call(x, *weights):
        return backends.dense_masked(x, k, Learners(*weights, *learners[4:]))

    assert torch.autograd.gradcheck(call, (x, *leaves))


@pytest.mark.parametrize("backend", CPU)
def test_bf16_stays_close(backend):
    learners = make(64, 24, 24, 4)
    half = Learners(*(t.bfloat16() for t in learners[:4]), *learners[4:])
    x = torch.randn(90, 24)
    k = choices_of("random", 90, 4)
    with torch.no_grad():
        y = backends.run(x.bfloat16(), k, half, backend)
        reference = backends.dense_masked(x, k, learners)
    assert y.dtype == torch.bfloat16
    error = (y.float() - reference).norm() / reference.norm()
    assert error < 2e-2


@pytest.mark.parametrize("backend", CPU)
def test_autocast_runs_in_its_precision(backend):
    learners, x, k = make(), torch.randn(40, 24), choices_of("random", 40, 4)
    with torch.no_grad():
        reference = backends.run(x, k, learners)
        with torch.autocast("cpu", torch.bfloat16):
            y = backends.run(x, k, learners, backend)
    assert y.dtype == torch.bfloat16
    assert (y.float() - reference).norm() / reference.norm() < 2e-2


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("backend", CPU)
def test_activations(backend, activation):
    learners = make(activation=activation)
    x, k = torch.randn(30, 24), choices_of("random", 30, 4)
    with torch.no_grad():
        y = backends.run(x, k, learners, backend)
    torch.testing.assert_close(y.double(), naive(x, k, learners), atol=1e-5, rtol=1e-5)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("backend", CPU)
def test_a_token_does_not_feel_the_rest_of_the_batch(backend, data):
    """Kills fault 1 of the public code: tokens of the batch's largest choice lost a learner."""
    learners = make(32, 8, 8, 4)
    tokens = data.draw(st.integers(1, 24))
    k = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=tokens, max_size=tokens)))
    x = torch.randn(tokens, 8, generator=torch.Generator().manual_seed(tokens))
    with torch.no_grad():
        together = backends.run(x, k, learners, backend)
        alone = [backends.run(x[i : i + 1], k[i : i + 1], learners, backend) for i in range(tokens)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 60, *ROWS])
def test_all_cuts_of_the_sorted_tokens_agree(rows):
    learners, x, k = make(), torch.randn(1500, 24), choices_of("random", 1500, 4)
    with torch.no_grad():
        y = sorted_prefix(x, k, learners, rows)
        reference = backends.dense_masked(x, k, learners)
    torch.testing.assert_close(y, reference, atol=1e-5, rtol=1e-5)


def test_the_block_is_measured_once_for_each_shape():
    learners, k = make(), choices_of("random", 300, 4)
    tuner.known.clear()
    with torch.no_grad():
        for _ in range(3):
            sorted_prefix(torch.randn(300, 24), k, learners)
        assert len(tuner.known) == 1
        sorted_prefix(torch.randn(1300, 24), choices_of("random", 1300, 4), learners)
    assert len(tuner.known) == 2


def test_full_budget_is_the_dense_product(monkeypatch):
    """Nothing is sorted, gathered or scattered when all tokens choose alike."""
    learners, x = make(), torch.randn(40, 24)

    def refuse(*args, **kwargs):
        raise AssertionError("sorted")

    monkeypatch.setattr(torch, "argsort", refuse)
    with torch.no_grad():
        y = sorted_prefix(x, torch.full((40,), 4), learners)
        assert torch.equal(y, learners(x))
        with pytest.raises(AssertionError, match="sorted"):
            sorted_prefix(x, choices_of("random", 40, 4), learners)


@pytest.mark.parametrize("capacity", [1.0, 0.6, 0.1])
def test_grouped_pairs_that_overflow_fall_back(capacity):
    learners, x, k = make(), torch.randn(64, 24), choices_of("random", 64, 4)
    with torch.no_grad():
        y = backends.grouped_mm(x, k, learners, capacity)
        reference = backends.dense_masked(x, k, learners)
    torch.testing.assert_close(y, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", CPU)
def test_no_token_and_one_token(backend):
    learners = make()
    with torch.no_grad():
        one = backends.run(torch.randn(1, 24), torch.tensor([3]), learners, backend)
        assert one.shape == (1, 24)
        none = backends.run(torch.randn(0, 24), torch.zeros(0, dtype=torch.long), learners, backend)
    assert none.shape == (0, 24)


def test_bad_input():
    learners, x = make(), torch.randn(4, 24)
    with pytest.raises(ShapeError, match=r"choices must be one integer for each token"):
        backends.run(x, torch.zeros(3, dtype=torch.long), learners)
    with pytest.raises(ShapeError, match=r"of torch.float32"):
        backends.run(x, torch.zeros(4), learners)
    with pytest.raises(ConfigError, match="did you mean 'sorted_prefix'"):
        backends.run(x, torch.zeros(4, dtype=torch.long), learners, "sorted_prefx")
    with pytest.raises(
        BackendError, match="'triton' cannot run here: .*; or use backend 'sorted_prefix'"
    ):
        backends.run(x, torch.zeros(4, dtype=torch.long), learners, "triton")
    with pytest.raises(ConfigError, match=r"capacity must be in \(0, 1\], got 0"):
        backends.grouped_mm(x, torch.zeros(4, dtype=torch.long), learners, 0)
    narrow = make(16, 6, 8, 2)
    with pytest.raises(ShapeError, match="must be multiples of 8, got 6 and 8"):
        backends.grouped_mm(torch.randn(4, 6), torch.zeros(4, dtype=torch.long), narrow)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["triton", "grouped_mm", "sorted_prefix", "gathered"])
def test_cuda_parity(backend, kind, dtype):
    learners = make(512, 128, 128, 4)
    x, k = torch.randn(777, 128), choices_of(kind, 777, 4)
    aim = torch.randn(777, 128)
    reference = naive(x, k, learners)

    leaves = [t.to("cuda", dtype).requires_grad_() for t in (x, *learners[:4])]
    moved = Learners(*leaves[1:], *learners[4:])
    y = backends.run(leaves[0], k.cuda(), moved, backend)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    error = (y.detach().cpu().double() - reference).norm() / reference.norm().clamp_min(1e-12)
    assert error < tolerance
    found = torch.autograd.grad((y.float() * aim.cuda()).sum(), leaves, allow_unused=True)
    expected_leaves = [t.clone().requires_grad_() for t in (x, *learners[:4])]
    dense = backends.dense_masked(
        expected_leaves[0], k, Learners(*expected_leaves[1:], *learners[4:])
    )
    expected = torch.autograd.grad((dense * aim).sum(), expected_leaves)
    for mine, theirs in zip(found, expected, strict=True):
        mine = torch.zeros_like(theirs) if mine is None else mine.cpu().float()
        assert (mine - theirs).norm() <= 2 * tolerance * theirs.norm().clamp_min(1e-3)
