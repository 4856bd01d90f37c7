"""The objective: what it computes, what it skips, and how it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Objective, after, decay
from potstill.core.errors import ObjectiveError

X, Y = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])


def refuse(*_):
    raise AssertionError("a term without weight was computed")


def test_total_is_the_weighted_sum_and_terms_are_unweighted():
    objective = Objective(a=(2.0, F.l1_loss), b=(3.0, F.mse_loss))
    losses = objective(0, a=(X, Y), b=(X, 2 * Y))
    assert losses.terms == {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    assert losses.weights == {"a": 2.0, "b": 3.0}
    torch.testing.assert_close(losses.total, torch.tensor(8.0))


def test_terms_are_detached_and_the_total_is_not():
    x = X.clone().requires_grad_()
    losses = Objective(a=(1.0, F.mse_loss))(0, a=(x, Y))
    assert not losses.terms["a"].requires_grad
    losses.total.backward()
    torch.testing.assert_close(x.grad, torch.tensor([-1.0, 1.0]))


def test_terms_without_weight_are_not_computed_and_need_no_tensors():
    objective = Objective(a=(1.0, F.l1_loss), b=(after(5, 1.0), refuse), c=(0, refuse))
    assert objective.at(4) == {"a": 1.0}
    assert list(objective(4, a=(X, Y)).terms) == ["a"]
    assert list(objective(4, a=(X, Y), b=(X, Y)).terms) == ["a"]
    with pytest.raises(AssertionError, match="without weight"):
        objective(5, a=(X, Y), b=(X, Y))


def test_schedules_are_functions_of_the_step():
    objective = Objective(a=(decay(4.0, 0.5), F.l1_loss))
    assert [objective.at(step)["a"] for step in range(3)] == [4.0, 2.0, 1.0]


def test_criteria_that_are_modules_train_with_it_also_under_dotted_names():
    objective = Objective.each(["blocks.0", "blocks.1"], 1.0, nn.MSELoss())
    assert objective.names == ("blocks.0", "blocks.1")
    projector = Objective(**{"blocks.0.mlp": (1.0, nn.Bilinear(1, 1, 1))})
    assert len(list(projector.parameters())) == 2
    assert projector.module("blocks.0.mlp") is not None
    assert Objective(a=(1.0, F.l1_loss)).module("a") is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: o(0), "step 0 needs tensors for 'feature', which have weight; got only none"),
        (lambda o: o(0, feature=(X, Y), feture=(X, Y)), "'feture'; did you mean 'feature'"),
        (lambda o: o(0, feature=X), "takes a tuple of arguments, got Tensor"),
        (lambda o: o(0, feature=(X, Y, None, None, "none")), r"must be a scalar.*shape \(2,\)"),
    ],
)
def test_misuse_is_refused_with_names(call, message):
    def feature(x, y, *more):
        return F.mse_loss(x, y, *more[:3]) if not more else F.mse_loss(x, y, reduction="none")

    with pytest.raises(ObjectiveError, match=message):
        call(Objective(feature=(1.0, feature), late=(after(9, 1.0), F.l1_loss)))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "at least one term"),
        ({"a": F.l1_loss}, r"'a' must be \(weight, criterion\)"),
        ({"a": (F.l1_loss, 1.0)}, "criterion of 'a' must be callable, got 1.0"),
        ({"a": ("1", F.l1_loss)}, "weight of 'a' must be a number"),
    ],
)
def test_a_wrong_term_is_refused_when_it_is_declared(terms, message):
    with pytest.raises(ObjectiveError, match=message):
        Objective(terms)


def test_weights_that_are_not_finite_and_steps_without_any_weight_are_refused():
    with pytest.raises(ObjectiveError, match="weight of 'a' at step 3 is nan"):
        Objective(a=(lambda _: float("nan"), F.l1_loss)).at(3)
    with pytest.raises(ObjectiveError, match="no term has weight at step 0; known: a"):
        Objective(a=(after(1, 1.0), F.l1_loss))(0)
