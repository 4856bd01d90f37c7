"""Quantizers: stored vectors, error bounds, gradients."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import ConfigError
from potstill.core.schemes.quantize import dual_binarize, quantize_to_levels, uniform_quantize
from potstill.core.store.data import root
from potstill.core.testing import requires_data

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
