"""Scores against closed forms and hand-made networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import ConfigError, ShapeError
from potstill.core.criteria import ickd
from potstill.search import SmallResNet
from potstill.search.scores import (
    diswot,
    diswot_relation,
    diswot_semantic,
    initialise,
    jacob_cov,
    naswot,
    synflow,
)

CLASSES, WIDTH, ITEMS = 5, 7, 16


class Given(nn.Module):
    """Features that are what the test says, and a classifier."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = features.double()
        self.head = nn.Linear(features.shape[1], CLASSES, bias=False).double()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.features

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features)

    def gradient(self, y: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(F.cross_entropy(self.head(self.features), y), self.head.weight)[
            0
        ]


@pytest.fixture
def pair() -> tuple[Given, Given, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    y = torch.randint(CLASSES, (ITEMS,))
    return Given(torch.rand(ITEMS, WIDTH)), Given(torch.rand(ITEMS, WIDTH)), (torch.zeros(1), y)


def test_the_semantic_term_is_the_published_difference_of_gram_matrices(pair) -> None:
    student, teacher, batch = pair
    grams = [net.gradient(batch[1])[:, :, None, None] for net in (student, teacher)]
    found = -diswot_semantic(student, batch, teacher)
    assert math.isclose(found, float(ickd(*grams)), rel_tol=1e-12)


def test_the_semantic_term_of_a_saturated_softmax_is_that_of_the_gram_matrices_too(pair) -> None:
    student, teacher, (x, y) = pair
    for net, size in ((student, 60), (teacher, 90)):
        net.head.weight.data *= size
    y = y % 2  # the other classes have next to no gradient
    grams = [net.gradient(y)[:, :, None, None] for net in (student, teacher)]
    assert min(gram.square().sum(1).min() for gram in grams) < 1e-12
    found = -diswot_semantic(student, (x, y), teacher)
    assert math.isclose(found, float(ickd(*grams)), rel_tol=1e-9)


def test_the_semantic_term_changes_with_the_order_of_channels(pair) -> None:
    student, teacher, batch = pair
    before = diswot_semantic(student, batch, teacher)
    order = torch.randperm(WIDTH)
    student.features = student.features[:, order]
    student.head.weight.data = student.head.weight.data[:, order]
    assert abs(diswot_semantic(student, batch, teacher) - before) > 1e-3  # the method's weakness


def test_the_relation_of_constant_and_of_orthogonal_features() -> None:
    constant, orthogonal = Given(torch.ones(ITEMS, 3)), Given(torch.eye(ITEMS))
    value = -diswot_relation(constant, (torch.zeros(1), None), orthogonal)
    assert math.isclose(value, (2 - 2 / math.sqrt(ITEMS)) / ITEMS, rel_tol=1e-12)
    assert math.isclose(value, 0.09375, rel_tol=1e-12)


def test_the_relation_of_features_that_are_one_direction_each() -> None:
    torch.manual_seed(2)
    a, b = torch.rand(ITEMS).double(), torch.rand(ITEMS).double()
    pair = [Given(torch.outer(x, torch.randn(w).double())) for x, w in ((a, 3), (b, 5))]
    expected = (F.normalize(a, dim=0) - F.normalize(b, dim=0)).square().sum() / ITEMS
    found = -diswot_relation(pair[0], (torch.zeros(1), None), pair[1])
    assert math.isclose(found, float(expected), rel_tol=1e-9)


def test_a_student_that_is_its_teacher_has_the_highest_score(pair) -> None:
    student, other, batch = pair
    assert diswot(student, batch, student) == pytest.approx(0, abs=1e-12)
    assert diswot(student, batch, other) < -0.01


def test_other_widths_and_models_are_refused_by_what_is_missing(pair) -> None:
    student, _, batch = pair
    wider = Given(torch.rand(ITEMS, WIDTH + 1))
    with pytest.raises(ShapeError, match=r"\[5, 7\] and \[5, 8\]; diswot_relation is defined"):
        diswot(student, batch, wider)
    assert math.isfinite(diswot_relation(student, batch, wider))
    with pytest.raises(ConfigError, match=r"forward_features.*got Linear.*parameters, macs"):
        diswot(nn.Linear(3, 3), batch, student)
    student.get_classifier = nn.Identity
    with pytest.raises(ConfigError, match=r"get_classifier, .* linear layer.*jacob_cov remain"):
        diswot_semantic(student, batch, wider)


def test_the_gradient_of_a_zero_head_is_a_difference_of_means(pair) -> None:
    student, _, (_, y) = pair
    student.head.weight.data.zero_()
    f = student.features
    means = torch.stack([f[y == c].sum(0) / ITEMS for c in range(CLASSES)])
    torch.testing.assert_close(student.gradient(y), f.mean(0) / CLASSES - means)


def test_synflow_of_a_chain_of_linear_maps() -> None:
    torch.manual_seed(1)
    chain = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((4, 6), (6, 3), (3, 5))))
    flow = torch.ones(4, dtype=torch.float64)
    for layer in chain:
        flow = layer.weight.detach().double().abs() @ flow
    found = math.exp(synflow(chain, (torch.zeros(1, 4), None)))
    assert math.isclose(found, 3 * float(flow.sum()), rel_tol=1e-12)


def test_synflow_skips_normalisation_and_leaves_the_model_alone() -> None:
    plain = nn.Sequential(nn.Linear(4, 3, bias=False))
    normed = nn.Sequential(plain[0], nn.BatchNorm1d(3, affine=False))
    before = plain[0].weight.clone()
    batch = (torch.zeros(1, 4), None)
    assert synflow(plain, batch) == synflow(normed, batch)
    assert torch.equal(plain[0].weight, before)


def test_naswot_of_two_items() -> None:
    net = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.ones(2, 10)
    x[1, :3] = -1
    assert math.isclose(naswot(net, (x, None)), math.log(10**2 - 7**2), rel_tol=1e-12)
    assert naswot(net, (torch.ones(2, 10), None)) == -math.inf
    with pytest.raises(ConfigError, match="activations as modules"):
        naswot(nn.Linear(10, 1), (x, None))


def test_jacob_cov_of_jacobians_with_a_known_correlation() -> None:
    class Product(nn.Module):  # the Jacobian of item i is row i of the weight
        def __init__(self, rows: torch.Tensor) -> None:
            super().__init__()
            self.rows = rows

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.rows).sum(1)

    rows = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1]])  # uncorrelated: eigenvalues 1, 1
    k = 1e-5
    expected = -2 * (math.log(1 + k) + 1 / (1 + k))
    found = jacob_cov(Product(rows), (torch.zeros(2, 4), None))
    assert math.isclose(found, expected, rel_tol=1e-6)
    same = jacob_cov(Product(rows[:1].repeat(2, 1)), (torch.zeros(2, 4), None))
    assert same < found


def test_weights_are_drawn_as_named() -> None:
    net = SmallResNet((1,), 32)
    kept = net.conv1.weight.clone()
    assert torch.equal(initialise(net, "own").conv1.weight, kept)
    torch.manual_seed(0)
    assert initialise(net, "normal").fc.weight.std().item() == pytest.approx(1, abs=0.15)
    assert net.fc.bias.eq(0).all()
    weight = initialise(net, "kaiming").conv1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.1)  # fan out
    assert 0.9 / math.sqrt(32) < net.fc.weight.max().item() < 1 / math.sqrt(32)  # torch's own
