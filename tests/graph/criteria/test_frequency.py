"""The fast criteria against the formulas written out edge by edge, in double precision."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core import Distiller, Objective, fit
from potstill.core.errors import BackendError, ConfigError, DataError, ShapeError
from potstill.core.testing import (
    assert_criterion,
    requires_cuda,
    requires_data,
    with_package,
)
from potstill.graph.criteria.frequency import HighFrequency, LowFrequency, SoftLabel
from potstill.graph.kernels import CONTRASTS

BACKENDS = ["torch", "native"]


def low_reference(z_s, z_t, edges, weight=None, reduction="edge"):
    """Edge by edge, as it is defined: all edges and one self-loop a node."""
    loops = torch.arange(len(z_s))
    source, target = torch.cat([edges, torch.stack([loops, loops])], 1)
    weight = torch.ones(edges.shape[1]).to(z_s) if weight is None else weight
    weight = torch.cat([weight, torch.ones(len(z_s)).to(z_s)])
    p, log_q = z_t.softmax(1)[source], z_s.log_softmax(1)[target]
    return mean((p * (p.log() - log_q)).sum(1), weight, target, len(z_s), reduction)


def high_reference(z_s, z_t, edges, tau, weight=None, reduction="edge"):
    source, target = edges
    weight = torch.ones(edges.shape[1]).to(z_s) if weight is None else weight
    p = ((z_t[source] - z_t[target]).abs() / tau).softmax(1)
    log_q = ((z_s[source] - z_s[target]).abs() / tau).log_softmax(1)
    return mean((p * (p.log() - log_q)).sum(1), weight, target, len(z_s), reduction)


def mean(values, weight, target, count, reduction):
    if reduction == "edge":
        return (values * weight).sum() / weight.sum()
    nodes = [
        (values * weight)[target == i].sum() / weight[target == i].sum()
        for i in range(count)
        if bool((target == i).any())
    ]
    return torch.stack(nodes).mean()


def problem(nodes=12, classes=5, edges=40, seed=0, symmetric=True, weighted=False):
    rng = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, nodes, (2, edges), generator=rng)
    pairs = torch.unique(pairs[:, pairs[0] != pairs[1]], dim=1)
    if symmetric:
        pairs = torch.unique(torch.cat([pairs, pairs.flip(0)], 1), dim=1)
    weight = torch.rand(pairs.shape[1], generator=rng) + 0.1 if weighted else None
    if weighted and symmetric:
        table = torch.rand(nodes, nodes, generator=rng)
        weight = (table + table.T)[pairs[0], pairs[1]] + 0.1
    z_s, z_t = torch.randn(2, nodes, classes, generator=rng) * 2
    return z_s, z_t, pairs, weight


def gradient(function, z):
    z = z.clone().requires_grad_()
    value = function(z)
    value.backward()
    return value.detach(), z.grad


CASES = [
    (symmetric, weighted, reduction)
    for symmetric in (True, False)
    for weighted in (True, False)
    for reduction in ("edge", "node")
]


@pytest.mark.parametrize(("symmetric", "weighted", "reduction"), CASES)
def test_low_frequency_is_the_sum_over_edges(symmetric, weighted, reduction):
    z_s, z_t, edges, weight = (
        v if v is None or not v.is_floating_point() else v.double()
        for v in problem(symmetric=symmetric, weighted=weighted)
    )
    low = LowFrequency(reduction)
    value, slope = gradient(lambda z: low(z, z_t, edges, weight), z_s)
    expected, exact = gradient(lambda z: low_reference(z, z_t, edges, weight, reduction), z_s)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("symmetric", "weighted", "reduction"), CASES)
def test_high_frequency_is_the_sum_over_edges(symmetric, weighted, reduction):
    z_s, z_t, edges, weight = (
        v if v is None or not v.is_floating_point() else v.double()
        for v in problem(symmetric=symmetric, weighted=weighted)
    )
    high = HighFrequency(1.3, reduction, edge_chunk=7)
    value, slope = gradient(lambda z: high(z, z_t, edges, weight), z_s)
    expected, exact = gradient(lambda z: high_reference(z, z_t, edges, 1.3, weight, reduction), z_s)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 16, 17, 40, 70, 128, 130])
@pytest.mark.parametrize("keep", [True, False], ids=["teacher kept", "teacher made again"])
def test_backends_agree_with_double_precision(backend, classes, keep, monkeypatch):
    skip_without(backend)
    if not keep:
        monkeypatch.setattr("potstill.graph.kernels.contrast._KEEP", 0)
    z_s, z_t, edges, _ = problem(50, classes, 300, seed=classes)
    high = HighFrequency(1.5, backend=backend, edge_chunk=64)
    value, slope = gradient(lambda z: high(z, z_t, edges), z_s)
    expected, exact = gradient(lambda z: high_reference(z, z_t.double(), edges, 1.5), z_s.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    scale = exact.norm().clamp_min(1e-12)
    assert (slope - exact).norm() / scale < 1e-5 or classes == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_native_kernel_does_not_depend_on_threads(threads):
    skip_without("native")
    z_s, z_t, edges, _ = problem(2000, 7, 30000)
    before = torch.get_num_threads()
    high = HighFrequency(1.5, backend="native")
    try:
        torch.set_num_threads(threads)
        value, slope = gradient(lambda z: high(z, z_t, edges), z_s)
    finally:
        torch.set_num_threads(before)
    expected, exact = gradient(lambda z: high_reference(z, z_t, edges, 1.5), z_s)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert (slope - exact).norm() / exact.norm() < 1e-5


def test_the_native_kernel_leaves_subnormal_numbers_alone():
    """In a process of its own: a library linked with -ffast-math flushes them for everybody."""
    skip_without("native")
    program = (
        "from potstill.graph.kernels.native import kernel; import numpy, torch; "
        "kernel('edges'), kernel('product'); "
        "assert numpy.float32(1e-40) * numpy.float32(1) > 0; assert torch.tensor(1e-40) * 1 > 0"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 20), st.floats(0.2, 20.0), st.floats(0.01, 50.0))
def test_native_holds_for_any_scale_of_logits(seed, classes, tau, scale):
    skip_without("native")
    z_s, z_t, edges, _ = problem(12, classes, 40, seed=seed)
    z_s, z_t = z_s * scale, z_t * scale
    value = HighFrequency(tau, backend="native")(z_s, z_t, edges)
    expected = HighFrequency(tau, backend="torch")(z_s.double(), z_t.double(), edges)
    assert abs(float(value) - float(expected)) <= 2e-5 * max(1.0, abs(float(expected)), scale)


INTERPRETED = """
import torch
from potstill.graph.criteria.frequency import HighFrequency
from potstill.graph.kernels import contrast
from potstill.graph.kernels.triton import edge_contrast
rng = torch.Generator().manual_seed(0)
pairs = torch.unique(torch.randint(0, 20, (2, 150), generator=rng), dim=1)
pairs = pairs[:, pairs[0] != pairs[1]]
for contrast._KEEP in (2**28, 0):
    for classes in (1, 7, 40):
        z_s, z_t = torch.randn(2, 20, classes, generator=rng)
        made = HighFrequency(1.5, backend="torch")._prepare(z_t, pairs, None, z_s.dtype)
        expected, exact = contrast.edge_contrast(z_s, made, True)
        value, slope = edge_contrast(z_s, made, True)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slope, exact, rtol=1e-4, atol=1e-7)
"""


@with_package("triton")
def test_the_triton_kernel_agrees_in_tritons_own_interpreter():
    # In a process of its own: Triton decides how it runs when it is imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@requires_cuda
def test_the_triton_kernel_agrees_with_the_reference():
    z_s, z_t, edges, _ = problem(500, 15, 9000)
    expected, exact = gradient(lambda z: HighFrequency(1.5, backend="torch")(z, z_t, edges), z_s)
    high = HighFrequency(1.5, backend="triton")
    value, slope = gradient(lambda z: high(z, z_t.cuda(), edges.cuda()), z_s.cuda())
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-6)
    assert (slope.cpu() - exact).norm() / exact.norm() < 1e-5


@pytest.mark.parametrize(
    "criterion",
    [SoftLabel(), LowFrequency(), LowFrequency("node"), HighFrequency(1.5, backend="torch")],
    ids=repr,
)
def test_rules_of_criteria(criterion):
    z_s, z_t, edges, _ = problem()
    assert_criterion(criterion, z_s, z_t, edges)


def test_soft_label_is_the_mean_divergence_of_the_nodes():
    z_s, z_t, _, _ = problem()
    expected = F.kl_div(z_s.log_softmax(1), z_t.softmax(1), reduction="batchmean")
    torch.testing.assert_close(SoftLabel()(z_s, z_t), expected)


@requires_data("graph/planetoid/Cora/raw", "graph/coauthor/CS/raw")
@pytest.mark.parametrize("name", ["cora", "cs"])
def test_gradients_on_real_graphs(name):
    from potstill.graph.data.datasets import load

    data = load(name)
    rng = torch.Generator().manual_seed(0)
    z_s, z_t = torch.randn(2, data.num_nodes, data.num_classes, generator=rng)
    edges = data.edge_index

    def reference(z):
        return low_reference(z, z_t, edges) + high_reference(z, z_t, edges, 1.5)

    _, exact = gradient(reference, z_s)
    for backend in ("torch", "native"):
        skip_without(backend)
        low, high = LowFrequency(), HighFrequency(1.5, backend=backend)

        def total(z, low=low, high=high):
            return low(z, z_t, edges) + high(z, z_t, edges)

        _, slope = gradient(total, z_s)
        assert (slope - exact).norm() / exact.norm() <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_of_edges_and_shift_of_logits_do_not_matter(backend):
    skip_without(backend)
    z_s, z_t, edges, _ = problem()
    shuffled = edges[:, torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(1))]
    for criterion in (LowFrequency(), HighFrequency(1.5, backend=backend)):
        value = criterion(z_s, z_t, edges)
        torch.testing.assert_close(criterion(z_s, z_t, shuffled), value)
        torch.testing.assert_close(criterion(z_s + 3, z_t, edges), value)


def test_a_new_teacher_is_noticed_even_when_written_in_place():
    z_s, z_t, edges, _ = problem()
    low = LowFrequency()
    before = low(z_s, z_t, edges)
    z_t.mul_(2)
    assert not torch.equal(low(z_s, z_t, edges), before)
    torch.testing.assert_close(low(z_s, z_t, edges), low_reference(z_s, z_t, edges))


def test_nothing_to_match_without_edges():
    z_s, z_t, _, _ = problem()
    none = torch.empty(2, 0, dtype=torch.long)
    z_s.requires_grad_()
    value = HighFrequency(1.5)(z_s, z_t, none)
    value.backward()
    assert value == 0
    assert not z_s.grad.any()
    torch.testing.assert_close(LowFrequency()(z_s, z_t, none), SoftLabel()(z_s, z_t))


def test_errors_say_what_to_do():
    z_s, z_t, edges, _ = problem()
    with pytest.raises(ShapeError, match=r"HighFrequency: z_t must be \[12, 5\] .* got \[12, 4\]"):
        HighFrequency()(z_s, z_t[:, :4], edges)
    with pytest.raises(ConfigError, match="tau must be a finite number > 0, got 0"):
        HighFrequency(tau=0)
    with pytest.raises(ConfigError, match="reduction must be edge or node, got 'sum'"):
        LowFrequency("sum")
    with pytest.raises(ConfigError, match="must be a known one, got 'cuda'; known: auto, triton"):
        HighFrequency(backend="cuda")


def test_auto_falls_back_to_torch_without_a_compiler(monkeypatch):
    monkeypatch.setitem(vars(CONTRASTS["native"]), "missing", "no compiler")
    z_s, z_t, edges, _ = problem()
    expected = HighFrequency(backend="torch")(z_s, z_t, edges)
    with pytest.warns(UserWarning, match="'torch' runs instead of 'native': no compiler"):
        assert torch.equal(HighFrequency()(z_s, z_t, edges), expected)
    with pytest.raises(BackendError, match="'native' cannot run here: no compiler; or use"):
        HighFrequency(backend="native")


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_ends_of_any_integer_type_and_none_outside(backend):
    skip_without(backend)
    z_s, z_t, edges, _ = problem()
    for criterion in (HighFrequency(backend=backend), LowFrequency()):
        expected = criterion(z_s, z_t, edges)
        assert torch.equal(criterion(z_s, z_t, edges.int()), expected)
        for wrong in (edges - 1, edges + 1):
            with pytest.raises(DataError, match=r"edge_index must be in \[0, "):
                criterion(z_s, z_t, wrong)
        with pytest.raises(ShapeError, match="edge_weight must be"):
            criterion(z_s, z_t, edges, torch.ones(3))


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_student_near_its_teacher_has_the_value_of_double_precision(backend):
    skip_without(backend)
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 7, generator=rng) * 3
    near = z + 0.01 * torch.randn(2000, 7, generator=rng)
    edges = torch.randint(2000, (2, 20_000), generator=rng)
    edges = edges[:, edges[0] != edges[1]]
    expected = HighFrequency(backend="torch")(near.double(), z.double(), edges)
    found = HighFrequency(backend=backend)(near, z, edges)
    assert expected < 1e-4
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_edges_written_to_through_numpy_are_seen():
    z_s, z_t, edges, _ = problem()
    array = edges.numpy().copy()
    shared, criterion = torch.from_numpy(array), LowFrequency()
    criterion(z_s, z_t, shared)
    array[:] = array[:, ::-1] % 2
    assert torch.equal(criterion(z_s, z_t, shared), LowFrequency()(z_s, z_t, shared.clone()))


def skip_without(backend):
    if why := CONTRASTS[backend].missing:
        pytest.skip(why)


class Graphs(Distiller):
    def forward(self, batch, step):
        x, z_t, edges = batch
        z = self.student(x)
        terms = {name: (z, z_t, edges) for name in self.objective.names}
        return self.objective(step, terms)


@pytest.mark.parametrize("reduction", ["edge", "node"])
def test_graphs_in_micro_batches_are_one_batch(reduction):
    """Two graphs with other numbers of nodes and edges, alone and as one graph of two parts."""
    torch.manual_seed(0)
    first, second = (torch.randn(4, 3), torch.randn(4, 2)), (torch.randn(7, 3), torch.randn(7, 2))
    star, ring = torch.tensor([[1, 2, 0], [0, 0, 3]]), torch.arange(7)
    ring = torch.cat([torch.stack([ring, ring.roll(1)]), torch.stack([ring, ring.roll(2)])], 1)
    ring = ring[:, ring[1] != 3]  # a node without edges
    whole = (*(torch.cat(pair) for pair in zip(first, second, strict=True)),
             torch.cat([star, ring + 4], 1))  # fmt: skip
    found = []
    for batches in ([whole], [(*first, star), (*second, ring)]):
        torch.manual_seed(1)
        student = torch.nn.Linear(3, 2)
        objective = Objective(
            soft=(1.0, SoftLabel()), low=(2.0, LowFrequency(reduction)),
            high=(3.0, HighFrequency(reduction=reduction, backend="torch")),
        )  # fmt: skip
        (row,) = fit(
            Graphs(student, objective), batches, steps=1, accumulate=len(batches), lr=0.1,
            optimizer=torch.optim.SGD, progress=False,
        )  # fmt: skip
        found.append((student.state_dict(), {k: v for k, v in row.items() if k != "seconds"}))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)
