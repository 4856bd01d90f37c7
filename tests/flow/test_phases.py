"""Phased DMD: the right target, and the naive one, which is another."""

import copy

import pytest
import torch

from potstill.core import ConfigError, fit
from potstill.flow import (
    Batch,
    Critic,
    GaussianMixture,
    Phased,
    Phases,
    PointNet,
    Prior,
    Teacher,
    Velocity,
    phased_target,
    phases,
    ring,
)

MEAN, DEVIATION = torch.tensor([1.0, -2.0]).double(), 0.5


def test_the_target_has_the_velocity_as_its_expectation() -> None:
    """Linear regression on x_t at s = .5, t = .8: the exact slope; the naive target has another."""
    rng = torch.Generator().manual_seed(0)
    z, e, x0 = torch.randn(3, 500_000, 2, generator=rng, dtype=torch.float64)
    at_half = 0.5 * (MEAN + DEVIATION * x0) + 0.5 * z
    noised, target, _ = phased_target(at_half, e, 0.8, 0.5)
    slope, intercept = regression(noised, target)
    assert slope == pytest.approx(1.153846, abs=0.01)
    torch.testing.assert_close(
        intercept, torch.tensor([-1.23077, 2.46154]).double(), atol=0.02, rtol=0
    )
    u = Teacher.gaussian_mixture(MEAN[None], DEVIATION).velocity(noised[:4], 0.8)
    torch.testing.assert_close(slope * noised[:4] + intercept, u, atol=0.05, rtol=0)
    naive, _ = regression(noised, e - at_half)
    assert naive == pytest.approx(0.9992, abs=0.01)
    t = 0.01 + 0.99 * torch.rand(500_000, generator=rng, dtype=torch.float64)
    clean = MEAN + DEVIATION * x0
    noised, target, _ = phased_target(clean, e, t, 0.0)
    torch.testing.assert_close(target, e - clean)
    torch.testing.assert_close(noised, (1 - t[:, None]) * clean + t[:, None] * e)


def regression(x: torch.Tensor, y: torch.Tensor) -> tuple[float, torch.Tensor]:
    a, b = x - x.mean(0), y - y.mean(0)
    slope = float((a * b).sum() / a.square().sum())
    return slope, y.mean(0) - slope * x.mean(0)


def small(naive: bool = False) -> Phases:
    torch.manual_seed(0)
    net = PointNet(2, 8, 2)
    experts = [Velocity(copy.deepcopy(net)) for _ in range(2)]
    critic = Critic(Velocity(net))
    return Phases(Phased(experts, (1.0, 0.5)), Teacher(ring(3)), critic, naive=naive)


def test_each_phase_trains_its_own_expert() -> None:
    distiller = small()
    before = copy.deepcopy(distiller.state_dict())
    stages = phases(distiller.student, updates=2)
    rows = fit(distiller, Prior((2,), 8), steps=2, lr=1e-2, stages=stages, progress=False)
    assert {"critic 0/denoise", "student 0/match"} <= set(rows[0])
    assert {"critic 1/denoise", "student 1/match"} <= set(rows[1])
    assert all(not torch.equal(before[n], v) for n, v in distiller.state_dict().items())
    z = torch.randn(3, 2)
    halfway = distiller.student.until(1, z)
    torch.testing.assert_close(halfway, z - 0.5 * distiller.student.experts[0](z, 1.0))
    torch.testing.assert_close(distiller.student(z), distiller.student.step(1, halfway))


def test_the_naive_critic_is_wrong_about_an_exact_student() -> None:
    """The exact velocity has the least loss of the right target, and not of the naive one."""
    found = {}
    for naive in (False, True):
        exact = Teacher.gaussian_mixture(MEAN[None], DEVIATION)
        critic = Critic(Velocity(copy.deepcopy(exact.model)))
        student = Phased([Velocity(GaussianMixture(MEAN[None], DEVIATION))] * 2, (1.0, 0.5))
        distiller = Phases(student, exact, critic, naive=naive)
        stage = phases(student)[0]
        distiller.objective, distiller.turn = stage.turns[0].objective, "critic 0"
        z = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        student.until = lambda phase, x, c=None: x  # type: ignore[method-assign]
        student.step = lambda phase, x, c=None: 0.5 * (MEAN + DEVIATION * x.flip(0)) + 0.5 * x  # type: ignore[method-assign]
        losses = {}
        for shift in (-0.2, 0.0, 0.2):
            torch.manual_seed(1)
            critic.net.model.means.data = MEAN[None] + shift
            losses[shift] = float(distiller(Batch(z), 0).total)
        found[naive] = min(losses, key=losses.get)
    assert found[False] == 0.0
    assert found[True] != 0.0


def test_what_cannot_be_is_refused() -> None:
    net = Velocity(PointNet(2, 8, 2))
    with pytest.raises(ConfigError, match="levels must fall from 1"):
        Phased([net, net], (1.0, 1.0))
    with pytest.raises(ConfigError, match="one for each of the 2 experts"):
        Phased([net, net], (1.0,))
    with pytest.raises(ConfigError, match="margin must be positive and small"):
        Phases(Phased([net], (1.0,)), Teacher(ring()), Critic(net), margin=0.7)
