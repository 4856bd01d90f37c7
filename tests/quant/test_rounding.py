"""Quantizers: stored vectors, error bounds, gradients."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import ConfigError
from potstill.core.store.data import root
from potstill.core.testing import requires_data
from potstill.quant import (
    DualBinary,
    Grid,
    LearnedLevels,
    dual_binarize,
    learned_step,
    quantize_to_levels,
    uniform_quantize,
)

VECTORS = "core/loss_vectors.json"


def cases(name):
    stored = json.loads((root() / VECTORS).read_text())
    return [case for case in stored["cases"] if case["name"] == name]


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


@requires_data(VECTORS)
def test_uniform_vectors() -> None:
    for case in cases("uniform_quantize_linear_scaling"):
        p = case["params"]
        found = uniform_quantize(tensor(p["w"]), p["levels"], bucket_size=p["bucket_size"])
        torch.testing.assert_close(found, tensor(case["expected"]), rtol=1e-9, atol=1e-12)


@requires_data(VECTORS)
def test_learned_levels_vector() -> None:
    (case,) = cases("nonuniform_quantize_and_level_gradient")
    p, expected = case["params"], case["expected"]
    levels = tensor(p["levels"]).requires_grad_()
    quantized, index = quantize_to_levels(tensor(p["w"]), levels)
    torch.testing.assert_close(quantized.detach(), tensor(expected["quantized"]))
    assert torch.equal(index, tensor(expected["index"]).long())
    quantized.backward(tensor(p["upstream_grad"]))
    torch.testing.assert_close(levels.grad, tensor(expected["grad_levels"]), rtol=1e-9, atol=0)


@requires_data(VECTORS)
def test_dual_binarization_vector() -> None:
    (case,) = cases("flexible_dual_binarization")
    p, expected = case["params"], case["expected"]
    w, b_1, b_2 = dual_binarize(tensor(p["w"]), p["alpha1"], p["alpha2"])
    for found, name in ((w, "w_hat"), (b_1, "w1"), (b_2, "w2"), (w, "nearest_level")):
        torch.testing.assert_close(found, tensor(expected[name]), rtol=1e-12, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 17), st.integers(1, 40), st.integers(1, 60))
def test_uniform_error_and_idempotence(seed, levels, bucket, size) -> None:
    w = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = uniform_quantize(w, levels, bucket_size=bucket)
    widths = torch.stack([b.max() - b.min() for b in w.split(bucket)])
    bound = (widths / (2 * (levels - 1))).repeat_interleave(bucket)[:size]
    assert ((found - w).abs() <= bound + 1e-12).all()
    torch.testing.assert_close(uniform_quantize(found, levels, bucket_size=bucket), found)


def test_gradients_pass_straight_through() -> None:
    w = torch.randn(6, requires_grad=True)
    uniform_quantize(w, 4).sum().backward()
    assert w.grad.eq(1).all()
    scale = torch.tensor(1.0, requires_grad=True)
    w, b_1, _ = dual_binarize(torch.tensor([0.9, -0.9]), scale, -0.5)
    w.sum().backward()
    assert scale.grad == b_1.sum()


def test_constant_bucket_and_misuse() -> None:
    assert uniform_quantize(torch.full((5,), 2.5), 4).eq(2.5).all()
    with pytest.raises(ConfigError, match="levels"):
        uniform_quantize(torch.ones(3), 1)
    with pytest.raises(ConfigError, match="bucket_size"):
        uniform_quantize(torch.ones(3), 2, bucket_size=0)
    with pytest.raises(ConfigError, match="sorted"):
        quantize_to_levels(torch.ones(3), torch.tensor([0.5, 0.2]))


def test_a_learned_step_has_the_published_gradients() -> None:
    w = tensor([[0.35, -0.8, 1.9, 0.12]]).requires_grad_()
    for at, slope in enumerate((0.3, -0.4, 1.0, -0.24)):
        scale = tensor([[0.5]]).requires_grad_()
        found = learned_step(w, scale, -2, 1)
        (of_w, of_scale) = torch.autograd.grad(found[0, at], (w, scale))
        torch.testing.assert_close(of_scale, tensor([[slope]]))
        assert of_w[0, at] == (at != 2)
    torch.testing.assert_close(found.detach(), tensor([[0.5, -1.0, 0.5, 0.0]]))


@pytest.mark.parametrize(("bits", "offset"), [(8, 0.0), (2, 0.0), (2, 0.5), (1, 0.5)])
def test_a_learned_step_is_homogeneous(bits, offset) -> None:
    """Euler: ``w dŵ/dw + s dŵ/ds = ŵ`` for every weight; a plain straight-through scale fails."""
    w = torch.randn(64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = w.abs().mean(1, keepdim=True).expand(64, 32).reshape(-1, 1).clone().requires_grad_()
    each = w.reshape(-1, 1).requires_grad_()
    found = learned_step(each, scale, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, offset)
    found.sum().backward()
    torch.testing.assert_close(each * each.grad + scale * scale.grad, found, rtol=0, atol=1e-13)


GAUSSIAN = {  # optimum steps and errors of unit normal numbers, from the moments of the cells
    (1, "midrise"): (1.595769, 0.363380), (2, "midrise"): (0.995687, 0.118846),
    (4, "midrise"): (0.335201, 0.0115429), (2, "twos"): (1.048385, 0.149431),
    (4, "twos"): (0.338608, 0.0118640), (8, "twos"): (0.0307656, 8.77069e-5),
    (3, "restricted"): (None, 0.0468600), (4, "restricted"): (None, 0.0128894),
}  # fmt: skip


@pytest.mark.parametrize("case", GAUSSIAN)
def test_the_scale_is_the_best_one_of_a_gaussian(case) -> None:
    grid = Grid(case[0], form=case[1])
    count = 1_000_000 if case[0] == 8 else 200_000  # far values are rare, and cost 8 bits most
    w = torch.randn(1, count, generator=torch.Generator().manual_seed(0))
    scale = grid.scale(w)
    step, error = GAUSSIAN[case]
    found = (grid.values(grid.integers(w, scale), scale) - w).square().mean()
    torch.testing.assert_close(found, torch.tensor(error), rtol=0.015, atol=0)
    if step is not None:
        torch.testing.assert_close(scale.abs().squeeze(), torch.tensor(step), rtol=0.03, atol=0)


def test_rows_of_zeros_and_short_blocks() -> None:
    grid = Grid(4, block=4)
    w = torch.randn(3, 2, 3)
    w[1] = 0
    rows = grid.rows(w)
    assert rows.shape == (6, 4)
    assert torch.equal(grid.shaped(rows, w), w)
    scale = grid.scale(rows)
    assert scale[2:4].eq(1).all()
    assert grid.integers(rows, scale)[2:4].eq(0).all()
    assert torch.equal(Grid(4, axis=1).shaped(Grid(4, axis=1).rows(w), w), w)


@pytest.mark.parametrize(
    ("bits", "message"), [(5, "bits must be one of 1, 2, 3, 4, 7, 8"), (0, "0")]
)
def test_other_bits_are_refused(bits, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid(bits)
    with pytest.raises(ConfigError, match="block must be at least 1, got 0"):
        Grid(block=0)
    with pytest.raises(ConfigError, match="method must be 'max' or 'mse', got 'best'"):
        Grid().scale(torch.ones(1, 2), "best")


def test_masks_are_refused_where_they_are_not_the_nearest() -> None:
    """In the cone every weight takes its nearest level, per row too; outside there is no answer."""
    w = torch.linspace(-2, 2, 401, dtype=torch.float64).expand(3, -1)
    first, second = tensor([[1.0], [0.6], [-1.2]]), tensor([[-0.5], [-0.59], [0.1]])
    found, _, _ = dual_binarize(w, first, second)
    levels = torch.stack([second, 0 * first, first + second, first], -1)
    nearest = (w[..., None] - levels).abs().amin(-1)
    torch.testing.assert_close((w - found).abs(), nearest)
    for a, b in ((0.5, -1.0), (1.0, 0.5), (-0.2, -0.1), (0.0, 0.0)):
        with pytest.raises(ConfigError, match="scales must have first > -second > 0"):
            dual_binarize(w, a, b)


def test_learned_scales_and_levels_may_go_anywhere() -> None:
    """What an optimizer does to u, v and levels is never refused, and stays the nearest level."""
    w = torch.randn(4, 9)
    dual, levels = DualBinary(w, Grid(2)), LearnedLevels(w, Grid(2))
    with torch.no_grad():
        dual.u += torch.randn(4, 1)
        dual.v -= 2
        levels.levels.copy_(torch.tensor([0.9, -0.3, 0.5, 1.7]))
    first, second = dual.scales_of()
    table = torch.stack([second, 0 * first, first + second, first], -1)
    torch.testing.assert_close((w - dual(w)).abs(), (w[..., None] - table).abs().amin(-1))
    assert len(levels(w).unique()) <= 4
    with pytest.raises(ConfigError, match="bits must be 2, got 4"):
        DualBinary(w, Grid(4))


def test_levels_start_where_their_gradient_vanishes() -> None:
    """The error's gradient is zero iff each level is the mean of its cell (Lloyd and Max)."""
    w = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = LearnedLevels(w, Grid(2))
    (found(w) - w).square().mean().backward()
    assert found.levels.grad.abs().max() < 0.02
    x, p = tensor([0.0, 0.1, 0.2, 0.55, 0.7, 1.0]), tensor([0.1, 0.75]).requires_grad_()
    rounded, _ = quantize_to_levels(x, p)
    (rounded - x).square().sum().backward()
    torch.testing.assert_close(p.grad, tensor([0.0, 0.0]))


def test_a_negative_scale_gives_the_extra_level_to_the_other_side() -> None:
    w = torch.tensor([[2.0, 2.0, 1.0, 0.0, -1.0]])
    scale = Grid(2).scale(w)
    torch.testing.assert_close(scale, torch.tensor([[-1.0]]))
    assert Grid(2).scale(w, "max").item() == 2
    assert Grid(2, form="restricted").scale(w).item() > 0


def test_gradients_pass_in_the_whole_cells_of_a_mid_rise_grid() -> None:
    """One bit has levels ±s/2 and cells up to ±s: most weights lie beyond the levels."""
    w = torch.tensor([[-1.1, -0.9, 0.2, 0.9, 1.1]], requires_grad=True)
    learned_step(w, torch.tensor([[1.0]]), -1, 0, 0.5).sum().backward()
    assert w.grad.tolist() == [[0, 1, 1, 1, 0]]
