"""ReLU and dropout in place against the definition."""

import pytest
import torch

from potstill.graph.models.activation import relu_dropout


def through(z, p=0.5, training=True):
    leaf = z.clone().requires_grad_()
    y = relu_dropout(leaf * 1.0, p, training)
    y.sum().backward()
    return y.detach(), leaf.grad


@pytest.mark.parametrize("p", [0.3, 0.5, 0.6])
def test_drops_the_share_it_says_and_scales_the_rest(p):
    torch.manual_seed(0)
    z = torch.rand(1000, 501) + 0.1
    y, slope = through(z, p)
    kept = y > 0
    share = kept.float().mean()
    assert abs(share - (1 - p)) < 5 * (p * (1 - p) / z.numel()) ** 0.5
    torch.testing.assert_close(y[kept], z[kept] / (1 - p))
    torch.testing.assert_close(slope, kept / (1 - p))
    pairs = (kept[:, 1:] & kept[:, :-1]).float().mean()  # values of one draw are independent
    assert abs(pairs - (1 - p) ** 2) < 0.005


def test_negative_values_stay_off_and_pass_no_gradient():
    y, slope = through(-torch.rand(7, 5))
    assert not y.any()
    assert not slope.any()


def test_the_draw_is_that_of_the_global_stream_and_differs_between_parts():
    z = torch.ones(3, 2**18)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(through(z)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][0], found[0][1])


def test_nothing_is_dropped_in_evaluation():
    z = torch.randn(4, 3)
    for options in ({"training": False}, {"p": 0.0}):
        torch.testing.assert_close(through(z, **options)[0], z.relu())
    strided = torch.randn(3, 4).T
    torch.manual_seed(0)
    y = relu_dropout(strided, 0.5, True)
    assert bool(((y == 0) | (y == 2 * strided.relu())).all())
