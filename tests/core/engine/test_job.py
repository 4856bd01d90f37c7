"""Training options without a job: the same as `fit` by hand."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import ConfigError, Distiller, Objective, Training, cosine, fit
from potstill.core.engine import fit_with


class Regression(Distiller):
    def forward(self, batch, step):
        return self.objective(step, task=(self.student(batch[0]), batch[1]))


def regression():
    torch.manual_seed(0)
    return Regression(nn.Linear(3, 1), Objective(task=(1.0, F.mse_loss)))


BATCHES = [(torch.ones(4, 3), torch.ones(4, 1)), (torch.zeros(4, 3), torch.ones(4, 1))]


def test_options_of_training_mean_what_they_mean_to_fit():
    training = Training(
        steps=6, lr=0.1, optimizer="sgd", weight_decay=0.01, warmup=0.5, final=0.2, clip=0.3,
        accumulate=2, device="cpu",
    )  # fmt: skip
    ours, wanted = regression(), regression()
    rows = fit_with(training, ours, BATCHES, progress=False)
    expected = fit(
        wanted, BATCHES, steps=6, lr=0.1, schedule=cosine(0.2, 0.5), clip=0.3, accumulate=2,
        optimizer=partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.01),
        progress=False,
    )  # fmt: skip
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
    assert torch.equal(ours.student.weight, wanted.student.weight)


def test_an_unknown_optimizer_is_refused_unless_one_is_given():
    training = Training(steps=1, optimizer="adamm", device="cpu")
    with pytest.raises(ConfigError, match="'adamm'; did you mean 'adam'"):
        fit_with(training, regression(), BATCHES, progress=False)
    fit_with(training, regression(), BATCHES, optimizer=torch.optim.SGD, progress=False)
