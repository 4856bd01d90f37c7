"""Inner loops against closed forms and finite differences, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from potstill.core import ConfigError, unrolled


def linear(values):
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values], dtype=torch.float64))
    return model


def test_a_quadratic_loss_has_a_closed_form():
    """theta_k = (1 - lr c)^k theta_0 for c/2 |theta|^2, and its derivative in c and lr."""
    model = linear([1.0, -2.0])
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(forward):
        theta = forward(torch.eye(2, dtype=torch.float64))[:, 0]
        return 0.5 * c * theta.square().sum()

    moved = unrolled(model, loss, lr=lr, steps=3)["weight"]
    factor = 1 - 0.3 * 0.7
    torch.testing.assert_close(moved.detach(), factor**3 * model.weight.detach())
    slope_c, slope_lr = torch.autograd.grad(moved.sum(), (c, lr))
    total = float(model.weight.detach().sum())
    assert float(slope_c) == pytest.approx(-3 * 0.3 * factor**2 * total, rel=1e-12)
    assert float(slope_lr) == pytest.approx(-3 * 0.7 * factor**2 * total, rel=1e-12)


def test_gradients_of_an_inner_loop_are_those_of_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(6, 2).double(), torch.randn(6, 1).double()

    def after(weights):
        def loss(forward):
            return (weights * (forward(x) - y).square()[:, 0]).sum()

        moved = unrolled(model, loss, lr=0.05, steps=2)
        return F.mse_loss(functional_call(model, moved, (x,)), y)

    weights = torch.rand(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(after, (weights,))


def test_the_model_and_its_buffers_stay_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(5, 2)
    moved = unrolled(model, lambda forward: forward(x).square().mean(), lr=0.1, steps=2)
    assert set(moved) == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_first_order_leaves_second_derivatives_out():
    model = linear([1.0, 1.0])
    c = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    moved = unrolled(
        model, lambda f: c * f(torch.ones(1, 2).double()).sum(), lr=0.1, create_graph=False
    )
    assert moved["weight"].grad_fn is not None
    with pytest.raises(RuntimeError):
        torch.autograd.grad(moved["weight"].sum(), c)


def test_it_goes_on_from_given_parameters_and_works_on_a_frozen_model():
    model = linear([1.0, -2.0]).requires_grad_(False)

    def loss(forward):
        return forward(torch.eye(2, dtype=torch.float64)).square().sum()

    twice = unrolled(model, loss, lr=0.1, steps=2)
    once = unrolled(model, loss, lr=0.1)
    torch.testing.assert_close(unrolled(model, loss, lr=0.1, parameters=once), twice)


def test_less_than_a_step_is_refused():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        unrolled(linear([1.0, 1.0]), lambda f: f, lr=0.1, steps=0)
