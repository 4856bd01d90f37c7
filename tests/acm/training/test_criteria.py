"""Losses against closed forms and loops."""

import math

import pytest
import torch

from potstill.acm import (
    artificial_labels,
    budget_loss,
    diversity_loss,
    entropy_loss,
    every_prefix,
    gate_loss,
)
from potstill.core.errors import ConfigError, ShapeError


def test_every_prefix_is_a_mean_over_prefixes():
    prefixes, target = torch.randn(4, 5, 3), torch.randn(5, 3)
    expected = sum(((prefixes[n] - target) ** 2).mean() for n in (1, 2, 3)) / 3
    torch.testing.assert_close(every_prefix(prefixes, target), expected)
    expected = sum((prefixes[n] - target).abs().mean() for n in (1, 2, 3)) / 3
    torch.testing.assert_close(every_prefix(prefixes, target, "mae"), expected)


@pytest.mark.parametrize("boosted", [False, True])
def test_what_boosting_detaches(boosted):
    """Boosted, prefix n trains learner n alone; else learner n gets the gradient of n..N."""
    parts = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 2, dtype=torch.float64)
    zero = torch.zeros(1, 5, 2, dtype=torch.float64)
    prefixes = torch.cat([zero, parts]).cumsum(0)
    every_prefix(prefixes, target, boosted=boosted).backward()
    residual = 2 * (prefixes[1:] - target).detach() / target.numel() / 3
    expected = residual if boosted else residual.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(parts.grad, expected)


def prefixes_at(*distances):
    """One token whose prefixes lie at given distances from the target 0."""
    return torch.tensor(distances)[:, None, None] * torch.tensor([[0.6, 0.8]]), torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("distances", "label"),
    [
        ((1.0, 0.5, 0.25, 0.1), 3),  # each learner helps: all of them
        ((1.0, 0.5, 0.45, 0.1), 1),  # the second does not help
        ((1.0, 0.9, 0.1, 0.05), 0),  # not even the first does: none, unlike in the public code
        ((1.0, 0.1, 0.01, 0.009), 2),
    ],
)
def test_labels_are_the_last_learner_that_helps(distances, label):
    assert artificial_labels(*prefixes_at(*distances)).tolist() == [label]
    inclusive = artificial_labels(*prefixes_at(*distances), inclusive=True)
    assert inclusive.tolist() == [min(label + 1, 3)]


def test_labels_start_at_the_least_choice():
    assert artificial_labels(*prefixes_at(1.0, 0.99, 0.1, 0.09), least=1).tolist() == [2]


def test_labels_equal_a_loop():
    prefixes, target = torch.randn(5, 40, 6).cumsum(0), torch.randn(40, 6)
    labels = artificial_labels(prefixes, target, 0.9)
    for token in range(40):
        d = [float((prefixes[n, token] - target[token]).norm()) for n in range(5)]
        expected = next((n for n in range(4) if d[n + 1] >= 0.9 * d[n]), 4)
        assert int(labels[token]) == expected


def test_gate_loss_is_a_cross_entropy():
    logits, labels = torch.randn(2, 3, 4), torch.randint(1, 5, (2, 3))
    log = logits.log_softmax(-1)
    expected = -sum(log[i, j, labels[i, j] - 1] for i in range(2) for j in range(3)) / 6
    torch.testing.assert_close(gate_loss(logits, labels, least=1), expected)


def test_budget_loss():
    share = torch.tensor([0.2, 0.6])
    torch.testing.assert_close(budget_loss(share, 0.5), torch.tensor(0.1))
    torch.testing.assert_close(budget_loss(share, 0.5, "l2"), torch.tensor(0.01))


def test_entropy_of_constant_and_uniform_choices():
    constant = torch.nn.functional.one_hot(torch.full((2, 8), 1), 4).float()
    uniform = torch.nn.functional.one_hot(torch.arange(8)[None] % 4, 4).float()
    assert abs(float(entropy_loss([constant]))) < 1e-5
    torch.testing.assert_close(entropy_loss([uniform]), torch.tensor(-1.0), atol=1e-4, rtol=0)
    halves = torch.nn.functional.one_hot(torch.arange(8)[None] % 2, 4).float()
    expected = torch.tensor(-math.log(2) / math.log(4))
    torch.testing.assert_close(entropy_loss([halves]), expected, atol=1e-4, rtol=0)


def test_entropy_takes_modules_of_different_size_and_pulls_unused_choices():
    first = torch.zeros(2, 6, 5)
    first[..., 0] = 1
    first.requires_grad_()
    second = torch.zeros(2, 3, 2).fill_(0.5)
    loss = entropy_loss([first, second])
    torch.testing.assert_close(loss, torch.tensor(-0.5), atol=1e-4, rtol=0)
    loss.backward()
    assert bool(first.grad.isfinite().all())
    assert bool((first.grad[..., 1:] < first.grad[..., :1]).all())  # descent raises the unused
    assert abs(float(entropy_loss([torch.ones(2, 3, 1)]))) < 1e-5  # a single choice


def test_diversity_is_over_ordered_pairs():
    share = torch.tensor([0.1, 0.4, 0.9])
    expected = -sum(abs(a - b) for a in (0.1, 0.4, 0.9) for b in (0.1, 0.4, 0.9)) / 9
    torch.testing.assert_close(diversity_loss(share), torch.tensor(expected))
    one = torch.tensor([0.3], requires_grad=True)
    loss = diversity_loss(one)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(one.grad) == 0


def test_bad_input():
    with pytest.raises(ShapeError, match=r"target must be \[5, 3\] like each prefix, got \[5, 2\]"):
        every_prefix(torch.zeros(4, 5, 3), torch.zeros(5, 2))
    with pytest.raises(ConfigError, match="distance must be one of mse, mae, huber, got 'l2'"):
        every_prefix(torch.zeros(4, 5, 3), torch.zeros(5, 3), "l2")
    for budget in (0.0, -0.5, 1.01):
        with pytest.raises(ConfigError, match=r"budget must be in \(0, 1\]"):
            budget_loss(torch.ones(2), budget)
    with pytest.raises(ConfigError, match="distance must be l1 or l2"):
        budget_loss(torch.ones(2), 0.5, "huber")
    with pytest.raises(ConfigError, match=r"threshold must be in \(0, 1\], got 0"):
        artificial_labels(*prefixes_at(1.0, 0.5), threshold=0)
    with pytest.raises(ShapeError, match="at least one module, got none"):
        entropy_loss([])
