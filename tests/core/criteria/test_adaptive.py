"""Criteria with state, with a fit before training, and with a learned ratio."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.core import Batches, Distiller, Engine, Objective, Run, fit
from potstill.core import criteria as c
from potstill.core.criteria import lelp, trilateral
from potstill.core.engine.ranks import run_ranks
from potstill.core.errors import ConfigError, ShapeError
from potstill.core.store.data import root
from potstill.core.testing import requires_data

VECTORS = "core/loss_vectors.json"


def vector(name):
    stored = json.loads((root() / VECTORS).read_text())
    return next(k for k in stored["cases"] if k["name"] == name), stored["inputs"]


@requires_data(VECTORS)
def test_taid_schedule() -> None:
    case, _ = vector("taid_schedule")
    p = case["params"]
    criterion = c.Taid(
        p["num_train_steps"], start=p["t_start"], end=p["t_end"], alpha=p["alpha"], beta=p["beta"]
    )
    trace = []
    for loss in p["losses"]:
        criterion.update(torch.tensor(loss, dtype=torch.float64))
        trace.append(float(criterion.tau))
    torch.testing.assert_close(trace, case["expected"], rtol=1e-9, atol=0)


def test_taid_moves_in_training_only_and_resumes() -> None:
    z_s, z_t = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    one, other = c.Taid(40, alpha=0.3), c.Taid(40, alpha=0.3)
    for _ in range(5):
        one(z_s, z_t)
    other.load_state_dict(one.state_dict())
    for _ in range(5):
        assert torch.equal(one(0.9 * z_s, z_t), other(0.9 * z_s, z_t))
    assert one.tau == other.tau > 0.4
    before = one.tau.clone()
    one.eval()(z_s, z_t)
    assert one.tau == before
    trace = [float(one.train()(z_s, z_t)) and float(one.tau) for _ in range(60)]
    assert trace == sorted(trace)
    assert trace[-1] == 1.0


@requires_data(VECTORS)
def test_lelp_null_space_and_directions() -> None:
    case, _ = vector("lelp_nullspace_pca")
    p = case["params"]
    x = torch.tensor(p["embeddings"], dtype=torch.float64)
    weight = torch.tensor(p["classifier_weight"], dtype=torch.float64)
    projector = c.null_space_projector(weight)
    expected = torch.tensor(case["expected"]["projector"], dtype=torch.float64)
    torch.testing.assert_close(projector, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(weight @ projector, torch.zeros(2, 5, dtype=torch.float64))
    torch.testing.assert_close(projector @ projector, projector)
    found = c.lelp_subclasses(x, torch.tensor(p["labels"]), directions=3, classifier_weight=weight)
    for variance, stored in zip(found.variance, case["expected"]["per_class"], strict=True):
        stored = torch.tensor(stored["explained_variance"], dtype=torch.float64)
        torch.testing.assert_close(variance, stored, rtol=1e-8, atol=0)
    assert (found.axes @ weight.mT).abs().max() < 1e-10


def test_lelp_targets_add_up_to_the_teacher() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=g), torch.arange(40) % 2
    p = torch.softmax(torch.randn(40, 2, generator=g), 1)
    subclasses = c.lelp_subclasses(x, y, directions=2)
    targets = c.lelp_targets(x, p, subclasses)
    assert targets.shape == (40, 8)
    torch.testing.assert_close(targets.unflatten(1, (2, 4)).sum(2), p)
    head = c.LelpHead(3, 2, directions=2)
    logits = head(torch.randn(40, 3, generator=g))
    sums = torch.softmax(logits, 1).unflatten(1, (2, 4)).sum(2)
    torch.testing.assert_close(torch.softmax(head.classes(logits), 1), sums)
    F.cross_entropy(logits, targets).backward()
    with pytest.raises(ShapeError, match="class 0 must have more than 3"):
        c.lelp_subclasses(x[:4], y[:4], directions=3)
    with pytest.raises(ConfigError, match="directions"):
        c.lelp_subclasses(x, y, directions=6, classifier_weight=torch.randn(2, 6, generator=g))


@requires_data(VECTORS)
def test_tgeo_state() -> None:
    case, inputs = vector("tgeo_state")
    z_s, z_t = (
        torch.tensor(inputs[case["input"]][k], dtype=torch.float64) for k in ("student", "teacher")
    )
    labels = torch.tensor(inputs[case["input"]]["target"])
    state = c.tgeo_state(z_s, z_t, labels)
    expected = torch.tensor(case["expected"], dtype=torch.float64)
    torch.testing.assert_close(state, expected, rtol=1e-9, atol=1e-12)
    assert c.tgeo_reduced_state(z_s, z_t, labels).shape == (8, 11)
    means = trilateral.class_means(torch.softmax(z_t, 1), labels)
    torch.testing.assert_close(c.tgeo_state(z_s[:3], z_t[:3], labels[:3], means), state[:3])


def test_constant_ratio_is_hintons_mixture() -> None:
    g = torch.Generator().manual_seed(0)
    z_s, z_t = torch.randn(2, 6, 4, generator=g)
    y = torch.randint(0, 4, (6,), generator=g)
    expected = 0.3 * c.kd(z_s, z_t, T=1.5) + 0.7 * F.cross_entropy(z_s, y)
    torch.testing.assert_close(c.tgeo(z_s, z_t, y, 0.3), expected)
    with pytest.raises(ShapeError, match="tgeo"):
        c.tgeo_state(z_s, z_t, y[:2])


def test_rooms_export_what_they_name() -> None:
    assert {"lelp_targets", "LelpHead"} <= set(lelp.__all__)
    for name in c.__all__:
        assert getattr(c, name).__doc__, name


class _Adapted(Distiller):
    def forward(self, batch, step):
        return self.objective(step, taid=(self.student(batch), self.teacher(batch)))


def _train(batch_size, folder=None, steps=12):
    """The curve and the last tau of a short run with `Taid`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    criterion = c.Taid(
        num_steps=1000, alpha=0.1, beta=0.5
    )  # far from the last step: the losses decide
    distiller = _Adapted(nn.Linear(5, 4), Objective(taid=(1.0, criterion)), teacher=nn.Linear(5, 4))
    batches = Batches(list(torch.randn(40, 5)), batch_size)
    with Engine(device="cpu") as engine:
        rows = fit(
            distiller,
            batches,
            steps=steps,
            lr=0.05,
            run=None if folder is None else Run(folder, every=1),
            engine=engine,
            progress=False,
        )
    return [row["loss"] for row in rows], float(criterion.tau)


def test_taid_resumes_where_it_was(tmp_path) -> None:
    curve, tau = _train(8)
    _train(8, tmp_path, steps=5)
    assert _train(8, tmp_path) == (curve, tau)


@pytest.mark.dist
def test_taid_moves_alike_in_two_processes() -> None:
    curve, tau = _train(8)
    for losses, moved in run_ranks(_train, 2, 4):
        torch.testing.assert_close(losses, curve, rtol=1e-5, atol=1e-6)
        assert moved == pytest.approx(tau, abs=1e-6)
