"""One tensor out of whatever a model returns, and images as the teacher knows them."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from potstill.core import Distiller, Frozen, Objective
from potstill.core.adapters import Renormalized, TensorOutput, tensor_of
from potstill.core.errors import ShapeError
from potstill.core.testing import with_package

A, B = torch.ones(2), torch.zeros(3)
Pair = namedtuple("Pair", ["logits", "aux_logits"])


@pytest.mark.parametrize(
    "returned",
    [A, (A,), [A], {"sample": A}, {"logits": A, "hidden_states": (B, B)}, Pair(A, B), Pair(A, None),
     {"last_hidden_state": A, "pooler_output": None}],
)  # fmt: skip
def test_what_is_clear_is_taken(returned):
    assert tensor_of(returned) is A


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ((A, B), "tuple must have logits or a single entry, got 0, 1; choose one: output="),
        ({"out": A, "aux": B}, "dict must have logits or a single entry, got out, aux"),
        (((A, B),), "must be a tensor, got tuple; pass output="),
        ({"logits": "none"}, "must be a tensor, got str"),
        ((), "must be a tensor, got NoneType"),
        (None, "must be a tensor, got NoneType"),
        (3.0, "must be a tensor, got float"),
    ],
)
def test_what_is_ambiguous_is_refused(returned, said):
    with pytest.raises(ShapeError, match=said):
        tensor_of(returned)


def test_a_function_decides():
    assert tensor_of({"out": A, "aux": B}, lambda found: found["aux"]) is B
    assert tensor_of(A, lambda found: B) is B
    with pytest.raises(ShapeError, match="must be a tensor, got dict"):
        tensor_of({"out": A}, lambda found: found)


@with_package("transformers")
def test_model_outputs_of_transformers():
    from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

    assert tensor_of(ImageClassifierOutput(loss=B, logits=A, hidden_states=(B,))) is A
    both = BaseModelOutputWithPooling(last_hidden_state=A, pooler_output=B)
    with pytest.raises(ShapeError, match="got last_hidden_state, pooler_output; choose one"):
        tensor_of(both)
    assert tensor_of(both, lambda found: found.pooler_output) is B


class Told(nn.Module):
    """Returns what it was called with."""

    def forward(self, images, scale=1.0):
        return {"sample": images * scale}


def test_wrapped_models_pass_on_their_arguments():
    one = torch.ones(1, 1, 2, 2)
    model = TensorOutput(Renormalized(Told(), ((0.5,), (0.5,)), ((0.0,), (1.0,))))
    torch.testing.assert_close(model(one, scale=3.0), 3 * one)
    torch.testing.assert_close(model(-one), 0 * one)


def test_renormalized_images_are_those_of_the_teacher():
    ours, theirs = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), ((0.1, 0.2, 0.3), (0.5, 0.5, 0.4))
    (mean, std), (mean_t, std_t) = (
        tuple(torch.tensor(v)[:, None, None] for v in statistics) for statistics in (ours, theirs)
    )
    raw = torch.rand(2, 3, 5, 5)
    got = Renormalized(nn.Identity(), ours, theirs)((raw - mean) / std)
    torch.testing.assert_close(got, (raw - mean_t) / std_t, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "pair", [(None, ((0.5,), (0.5,))), (((0.5,), (0.5,)), None), 2 * [((0.5,), (0.5,))]]
)
def test_images_pass_unchanged_where_nothing_is_known_or_to_do(pair):
    images = torch.rand(1, 1, 2, 2)
    assert Renormalized(nn.Identity(), *pair)(images) is images


def test_wrappers_add_nothing_to_what_a_checkpoint_holds():
    statistics = ((0.0,), (1.0,)), ((0.5,), (0.5,))
    teacher = TensorOutput(Renormalized(nn.Linear(2, 2), *statistics))
    assert list(teacher.state_dict()) == ["model.model.weight", "model.model.bias"]
    distiller = Distiller(nn.Linear(2, 2), Objective(task=(1.0, nn.MSELoss())), teacher)
    assert isinstance(distiller.teacher, Frozen)
    assert sorted(distiller.state_dict()) == ["student.bias", "student.weight"]
    teacher.double()
    assert teacher.model.scale.dtype == torch.float64
