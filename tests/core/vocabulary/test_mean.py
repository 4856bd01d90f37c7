"""A mean that remembers its count behaves as the scalar that it is."""

import copy
import io

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.core import Mean, Objective
from potstill.core.criteria import kd, l1


def test_a_mean_is_a_scalar_and_what_is_made_of_it_a_plain_one():
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    value = Mean(x.sum(), torch.tensor(2))
    assert repr(value) == repr(x.mean()).replace("MeanBackward0", "AliasBackward0")
    value.backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.5, 0.5]))
    assert isinstance(value, Tensor)
    assert type(value.detach()) is type(2 * value) is type(value + value) is Tensor
    changed = value
    changed += 1
    assert type(changed) is Tensor
    assert float(value.detach()) == 2.0
    written = io.BytesIO()
    torch.save(value.detach(), written)
    assert type(copy.copy(value.detach())) is Tensor
    assert Mean(torch.zeros(()), 0) == 0


def test_an_objective_knows_what_each_term_counts():
    y = torch.tensor([0, -100, 1])
    z, t = torch.randn(2, 3, 4)
    counts = {
        "kd": (kd, (z, t, y), 2), "ce": (F.cross_entropy, (z, y), 2),
        "module": (nn.CrossEntropyLoss(ignore_index=0), (z, y.clamp_min(0)), 1),
        "weights": (l1, (z, t, torch.tensor([0.5, 1.0, 0.0])), 1.5),
        "plain": (F.mse_loss, (z, t), 3), "pair": (lambda a, b: b.sum(), ((z[:2],), t), 2),
        "none": (lambda a: a, (torch.ones(()),), 1),
    }  # fmt: skip
    objective = Objective({name: (1.0, criterion) for name, (criterion, *_) in counts.items()})
    losses = objective(0, {name: arguments for name, (_, arguments, _) in counts.items()})
    found = {name: float(part.items) for name, part in zip(counts, losses.parts, strict=True)}
    assert found == {name: count for name, (*_, count) in counts.items()}
    keys = dict(zip(counts, (part.key for part in losses.parts), strict=True))
    assert keys["kd"] == keys["ce"]  # one tensor of labels: one gradient
    assert len(set(keys.values())) == len(keys) - 1


def test_labels_that_are_all_ignored_are_worth_nothing():
    z = torch.randn(2, 3, requires_grad=True)
    losses = Objective(task=(1.0, F.cross_entropy))(0, task=(z, torch.tensor([-100, -100])))
    losses.total.backward()
    assert float(losses.total.detach()) == 0
    assert not z.grad.any()


def test_a_compiled_criterion_keeps_its_count():
    y, (z, t) = torch.tensor([0, -100, 1]), torch.randn(2, 3, 4)
    compiled = torch.compile(kd, backend="aot_eager", fullgraph=True)
    assert Objective(a=(1.0, compiled))(0, a=(z, t, y)).parts[0].items == 2
