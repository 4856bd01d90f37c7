"""Methods against closed forms in float64."""

import copy
import os
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from potstill.core import ConfigError, Training, fit
from potstill.core.engine import fit_with, run_ranks
from potstill.flow import (
    Batch,
    Critic,
    GaussianMixture,
    Items,
    OneStep,
    Phased,
    Phases,
    PointNet,
    Prior,
    Student,
    Students,
    Teacher,
    Twin,
    TwinFlow,
    Velocity,
    bottleneck,
    matching_loss,
    objectives,
    partition,
    phases,
    players,
    ring,
)
from potstill.flow.teachers.velocity import spread

MEAN, DEVIATION = torch.tensor([1.0, -2.0]).double(), 0.5


class ExactMap(nn.Module):
    """``(z - Phi) / delta``, Phi = delta m + sqrt(delta^2 s^2 + (1 - delta)^2) z of a Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, z, time, condition=None):
        delta = spread(1 - time, z)
        end = delta * MEAN + (delta**2 * DEVIATION**2 + (1 - delta) ** 2).sqrt() * z
        mean = torch.where(delta == 0, z - MEAN, (z - end) / delta.where(delta > 0, 1))
        return mean + self.unused


class Affine(nn.Module):
    """``G(z) = a z + b`` as a velocity."""

    def __init__(self, a, b) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a).double()), nn.Parameter(b.clone())

    def forward(self, z, time, condition=None):
        return z - self.a * z - self.b


def teacher() -> Teacher:
    return Teacher.gaussian_mixture(MEAN[None], DEVIATION)


def noise(n: int = 4096) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("derivative", "step", "most"),
    [("jvp", 0.02, 1e-9), ("finite", 1e-3, 1e-3), ("bootstrap", 0.01, 1e-3)],
)
def test_the_exact_map_has_no_residual(derivative: str, step: float, most: float) -> None:
    """Of all three forms. Bootstrapping is of second order, and of first where it leaves the prior.

    That is in a share of the times as large as the step, so the root mean square falls as its
    power 1.5: by 31 for a tenth of the step.
    """
    errors = []
    for size in (step, step / 10):
        torch.manual_seed(0)
        student = Student(Velocity(ExactMap()), 0.0)
        distiller = OneStep(
            student, teacher(), objectives(flow_map=1.0)[0], derivative=derivative, step=size
        )
        losses = distiller(Batch(noise()), 0)
        errors.append(float(losses.terms["map"].sqrt()))
    assert errors[0] < most
    if derivative != "jvp":
        assert errors[0] / errors[1] > 30


def test_a_wrong_map_has_a_residual() -> None:
    """The three forms see the same fault, to the order of their step."""
    found = []
    for derivative in ("jvp", "finite"):
        torch.manual_seed(0)
        model = ExactMap()
        model.unused.data.fill_(0.3)
        student = Student(Velocity(model), 0.0)
        distiller = OneStep(
            student, teacher(), objectives(flow_map=1.0)[0], derivative=derivative, step=1e-3
        )
        found.append(float(distiller(Batch(noise()), 0).terms["map"]))
    assert found[0] > 0.05
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def gradients(a: float, b: torch.Tensor) -> tuple[float, torch.Tensor]:
    torch.manual_seed(1)
    student = Student(Velocity(Affine(a, b)), 1.0)
    critic = Critic(Velocity(GaussianMixture(b[None], abs(a))))
    distiller = OneStep(student, teacher(), objectives(match=1.0)[0], critic)
    z = torch.cat([noise(), -noise()])  # antithetic: odd moments vanish
    losses = distiller(Batch(z), 0)
    losses.total.backward()
    net = student.net.model
    return float(net.a.grad), net.b.grad


@pytest.mark.parametrize("sign", [1, -1])
def test_matching_stands_still_at_the_teacher_alone(sign: int) -> None:
    """Critic and teacher agree when b = m and a = s or -s; else the gradient says where to go."""
    a, b = gradients(sign * DEVIATION, MEAN)
    assert (a, b.abs().max()) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    narrow, _ = gradients(sign * DEVIATION / 2, MEAN)
    wide, _ = gradients(sign * DEVIATION * 2, MEAN)
    assert narrow * sign < 0 < wide * sign  # descent widens, and narrows
    _, left = gradients(sign * DEVIATION, MEAN - 1)
    assert bool((left < 0).all())


def test_the_gradient_of_matching_is_that_of_its_paper() -> None:
    x, fake, real = (noise(8) + k for k in range(3))
    x.requires_grad_()
    matching_loss(x, fake, real).backward()
    scale = (x - real).abs().mean(1, keepdim=True)
    torch.testing.assert_close(x.grad * x.numel(), ((fake - real) / scale).detach())
    assert float(matching_loss(x.detach(), real, real)) == 0


def test_a_prior_is_drawn_for_all_processes_together() -> None:
    data = Items(torch.arange(20.0)[:, None].repeat(1, 2), torch.arange(20))
    one = next(Prior((2,), 8, data=data, pairs=data).stream(3, (0, 0, 1)))
    two = [next(Prior((2,), 4, data=data, pairs=data).stream(3, (0, r, 2))) for r in (0, 1)]
    for name in ("noise", "condition", "real"):
        whole = getattr(one, name)
        assert torch.equal(whole[0::2], getattr(two[0], name))
        assert torch.equal(whole[1::2], getattr(two[1], name))
    assert torch.equal(one.real[:, 0].long(), one.condition)
    assert torch.equal(one.pairs.values[0::2], two[0].pairs.values)
    assert Prior((2,), 8, 3).fingerprint() != Prior((2,), 8, 4).fingerprint()


def distiller_of(method: str) -> tuple[Any, Prior, list]:
    """Every method on a mixture, with networks of a few units."""
    torch.manual_seed(0)
    mixture = ring(3)
    points, _ = mixture.draw(64, torch.Generator().manual_seed(0))
    if method == "twinflow":
        return TwinFlow(Twin(PointNet(3, 8, 2))), Prior((2,), 8, data=Items(points)), []
    net = PointNet(2, 8, 2)
    if method == "phased":
        experts = Phased([Velocity(copy.deepcopy(net)) for _ in range(2)], (1.0, 0.5))
        distiller = Phases(experts, Teacher(mixture), Critic(Velocity(copy.deepcopy(net))))
        return distiller, Prior((2,), 8), phases(experts, updates=2)
    terms = {
        "boot": {"flow_map": 1.0},
        "freeflow": {"flow_map": 1.0, "match": 0.3},
        "dmd": {"match": 1.0, "regression": 0.25},
        "dmd2": {"match": 1.0, "adversarial": 0.1},
    }[method]
    student_terms, critic_terms = objectives(**terms)
    maps = method in ("boot", "freeflow")
    student = Student(Velocity(net), 0.0 if maps else 1.0)
    head = bottleneck(net) if method == "dmd2" else None
    critic = None if method == "boot" else Critic(Velocity(copy.deepcopy(net)), head)
    ends = Items(points, None, points.flip(0))
    source = Prior((2,), 8, data=Items(points), pairs=ends if method == "dmd" else None)
    stages = [] if method == "boot" else [players(critic_terms, updates=2)]
    return OneStep(student, Teacher(mixture), student_terms, critic), source, stages


METHODS = ("boot", "freeflow", "dmd", "dmd2", "phased", "twinflow")


class Killed(BaseException):
    """As hard as SIGKILL: nothing is written on the way out."""


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, method: str) -> None:
    """Killed at random calls of the distiller, so between the turns of a step, too."""
    training = Training(steps=6, lr=1e-2, ema=0.9, device="cpu", checkpoint_minutes=1e-9)
    run = partial(fit_with, training, progress=False)

    def end(folder, kill: int | None = None):
        distiller, source, stages = distiller_of(method)
        calls, forward = 0, distiller.forward

        def counted(batch, step):
            nonlocal calls
            calls += 1
            if calls == kill:
                raise Killed
            return forward(batch, step)

        distiller.forward = counted  # type: ignore[method-assign]
        run(distiller, source, stages=stages, run=folder)
        return distiller.state_dict(), calls

    whole, calls = end(tmp_path / "whole")
    assert calls == 6 * (1 if method in ("boot", "twinflow") else 3)
    picks = torch.randperm(calls, generator=torch.Generator().manual_seed(0))[
        : 20 if os.environ.get("POTSTILL_FULL") else 2
    ]
    for kill in (picks + 1).tolist():
        folder = tmp_path / str(kill)
        with pytest.raises(Killed):
            end(folder, kill)
        again, _ = end(folder)
        for name, value in whole.items():
            assert torch.equal(again[name], value), (kill, name)


def test_the_critic_is_left_alone_by_the_student_and_back() -> None:
    distiller, source, stages = distiller_of("dmd2")
    before = copy.deepcopy(distiller.state_dict())
    rows = fit(distiller, source, steps=2, lr=1e-2, stages=stages, progress=False)
    wanted = {"critic/denoise", "critic/discriminator", "student/match", "student/adversarial"}
    assert wanted <= set(rows[0])
    after = distiller.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_is_refused() -> None:
    distiller, _, stages = distiller_of("dmd2")
    with pytest.raises(ConfigError, match="discriminator needs real items, got none"):
        fit(distiller, Prior((2,), 8), steps=1, stages=stages, progress=False)
    student = Student(Velocity(PointNet(2, 8, 2)), 0.0)
    terms = objectives(flow_map=1.0)[0]
    with pytest.raises(ConfigError, match="unknown derivative 'exact'"):
        OneStep(student, teacher(), terms, derivative="exact")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="step must be in .0, 1."):
        OneStep(student, teacher(), terms, step=2.0)
    with pytest.raises(ConfigError, match="cannot give whole jumps; distil it with dmd"):
        OneStep(Student(Velocity(PointNet(2, 8, 2), "sample")), teacher(), terms)
    with pytest.raises(ConfigError, match="delta must be in .0, 1., got"):
        student.average(noise(3).float(), 1.5)
    with pytest.raises(ConfigError, match="at must be a time in .0, 1., got 2"):
        Student(Velocity(PointNet(2, 8, 2)), 2.0)
    with pytest.raises(ConfigError, match="data must hold items, got none"):
        Prior((2,), 8, data=Items(torch.zeros(0, 2)))
    with pytest.raises(ConfigError, match="pass head="):
        bottleneck(nn.Linear(2, 2))


def dmd2(batch: int) -> dict[str, torch.Tensor]:
    """A few steps of DMD2 with its head, in float64."""
    distiller, source, stages = distiller_of("dmd2")
    points = Items(source.data.values.double())
    source = Double((2,), batch, data=points)
    training = Training(steps=8, lr=1e-2, device="cpu")
    fit_with(training, distiller.double(), source, stages=stages, progress=False)
    return {name: value.clone() for name, value in distiller.state_dict().items()}


class Double(Prior):
    """Noise in float64."""

    def stream(self, start, shard):
        return (b._replace(noise=b.noise.double()) for b in super().stream(start, shard))


def test_the_last_node_of_disback_is_the_teacher() -> None:
    """With the teacher as its only node it is DMD, bit for bit; with another it is not at first."""
    ends = []
    for nodes in ([], [Teacher(ring(3))], [Teacher(ring(5))]):
        distiller, source, stages = distiller_of("dmd")
        again = OneStep(
            distiller.student, distiller.teacher.model, objectives(match=1.0)[0], distiller.critic,
            nodes=nodes, interval=3,
        )  # fmt: skip
        fit(again, Prior((2,), 8), steps=5, lr=1e-2, stages=stages, progress=False)
        assert source.batch_size == 8
        ends.append({n: v.clone() for n, v in again.state_dict().items()})
    first, same, other = ends
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)
    t, x = torch.full((4,), 0.5), torch.randn(4, 2)
    for step in (2, 3, 100):  # two steps in, and ever after
        wanted = Teacher(ring(5 if step < 3 else 3)).denoise(x, t)
        torch.testing.assert_close(again._estimates(x, t, None, step)[1], wanted)


@pytest.mark.parametrize("rule", ["consecutive", "random"])
def test_every_class_has_one_student(rule: str) -> None:
    for classes, students in ((10, 4), (7, 7), (5, 1)):
        router = partition(classes, students, rule, seed=3)
        assert sorted(router.unique().tolist()) == list(range(students))
        counts = router.bincount()
        assert int(counts.max() - counts.min()) <= 1
    with pytest.raises(ConfigError, match="from 1 to the 3 classes, got 4"):
        partition(3, 4, rule)


def test_the_class_picks_the_student() -> None:
    torch.manual_seed(0)
    one, two = (Student(Velocity(PointNet(2, 8, 2, classes=3)), classes=3) for _ in range(2))
    router = torch.tensor([0, 1, 0])
    several, z, y = Students([one, two], router), torch.randn(6, 2), torch.arange(6) % 3
    found = several(z, y)
    for row in range(6):
        alone = (one, two)[int(router[y[row]])](z[row : row + 1], y[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], alone)
    assert torch.equal(Students([one], torch.zeros(3).long()).sample(9), one.sample(9))
    with pytest.raises(ConfigError, match="must be in the partition, classes 0 to 2, got 0 to 3"):
        several(z[:2], torch.tensor([0, 3]))
    with pytest.raises(ConfigError, match="it picks the student; got none"):
        several(z)
    with pytest.raises(ConfigError, match="every class one of the 2 students"):
        Students([one, two], torch.tensor([0, 0, 0]))


@pytest.mark.dist
def test_two_processes_are_one_with_the_adversarial_head() -> None:
    alone = dmd2(8)
    for state in run_ranks(dmd2, 2, 4):
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
