"""Synthesis against closed forms in float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from potstill.condense import (
    AttentionMatching,
    ConvNet,
    Crops,
    DistributionMatching,
    EqualClasses,
    Expert,
    Flatness,
    Learner,
    Recovery,
    Samples,
    Siamese,
    SyntheticImages,
    TrajectoryMatching,
    Window,
    attention_map,
    make_network,
    normalized_distance,
    rollout,
    statistics_distance,
)
from potstill.condense.synthesis.rollout import flat as weights_of
from potstill.condense.synthesis.rollout import run_with
from potstill.condense.synthesis.trajectories import matching_optimizer
from potstill.core import fit, unrolled
from potstill.core.engine import Shard
from potstill.core.errors import ConfigError

F64 = torch.float64
f = torch.tensor([[[[1, 2], [0, 1]], [[2, 1], [1, 0]]]], dtype=F64)


@pytest.mark.parametrize(
    ("power", "map_", "distance"),
    [
        (1, (0.670820, 0.670820, 0.223607, 0.223607), 0.32770990),
        (2, (0.693375, 0.693375, 0.138675, 0.138675), None),
        (4, (0.705887, 0.705887, 0.041523, 0.041523), 0.46020289),
    ],
)
def test_attention_map(power: float, map_: tuple[float, ...], distance: float | None) -> None:
    found = attention_map(f, power)
    assert found[0].tolist() == pytest.approx(map_, abs=1e-6)
    torch.testing.assert_close(attention_map(3 * f.flip(1), power), found)
    assert bool((attention_map(0 * f, power) == 0).all())
    if distance is not None:
        g = torch.zeros(2, 2, 2, 2, dtype=F64)
        g[0, 0, 0], g[1, 0, 1, 0], g[1, 1, 1, 0] = 2, 3, 4
        gap = attention_map(g, power).mean(0) - found[0]
        assert float(gap.square().sum()) == pytest.approx(distance, abs=1e-8)


class Linear(nn.Module):
    """Features that are linear in the pixels, and no weights to draw."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.w.T


def test_distribution_matching_of_linear_features() -> None:
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(3, 4, generator=rng, dtype=F64)
    real = torch.randn(6, 1, 2, 2, generator=rng, dtype=F64)
    student = SyntheticImages(
        torch.randn(4, 1, 2, 2, generator=rng, dtype=F64), torch.tensor([0, 0, 1, 1])
    )
    distiller = DistributionMatching(student, Linear(w), Siamese(()))
    distiller(real, 0).total.backward()
    means = real.view(2, 3, 4).mean(1) - student.images.detach().view(2, 2, 4).mean(1)
    assert float(distiller(real, 0).terms["mean"]) == pytest.approx(
        float((means @ w.T).square().sum())
    )
    expected = -(2 / 2) * (means @ w.T @ w).repeat_interleave(2, 0).view(4, 1, 2, 2)
    torch.testing.assert_close(student.images.grad, expected)


def test_descent_moves_the_means_together_at_the_rate_of_the_note() -> None:
    """With E[W'W] = 1 the gap of the means shrinks by 2 lr / ipc a step; none is left at 0."""
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(3, 1, 2, 2, generator=rng, dtype=F64)
    student = SyntheticImages(torch.zeros(2, 1, 2, 2, dtype=F64), torch.tensor([0, 0]))
    total = torch.zeros(4, dtype=F64)
    for _ in range(100):
        w = torch.randn(200, 4, generator=rng, dtype=F64) / math.sqrt(200)
        student.images.grad = None
        DistributionMatching(student, Linear(w), Siamese(()))(real, 0).total.backward()
        total += student.images.grad.mean(0).flatten() / 100
    gap = real.mean(0).flatten()  # the synthetic mean is 0
    torch.testing.assert_close(total, -(2 / 2) * gap, rtol=0.05, atol=0.02)
    same = SyntheticImages(real, torch.zeros(3, dtype=torch.int64))
    assert DistributionMatching(same, Linear(w), Siamese(()))(real, 0).total.item() == 0


def test_all_classes_at_once_equal_a_loop_over_classes(pool_of) -> None:
    pool = pool_of((6, 5, 7))
    student = SyntheticImages.start(pool, 2, "real", torch.Generator().manual_seed(0))
    net = ConvNet(2, 4, "instance", classes=3, size=(8, 8)).requires_grad_(False)
    real = next(EqualClasses(pool, 4).stream(0, Shard()))
    distiller = AttentionMatching(student, net, Siamese(()), power=2)
    torch.manual_seed(3)
    losses = distiller(real, 0)
    maps = means = 0.0
    for c in range(3):
        layers, z = net.activations(real[4 * c : 4 * c + 4])
        own, own_z = net.activations(student.images[2 * c : 2 * c + 2].detach())
        means += float((z.mean(0) - own_z.mean(0)).square().sum())
        gap = attention_map(layers[0], 2).mean(0) - attention_map(own[0], 2).mean(0)
        maps += float(gap.square().sum())
    assert float(losses.terms["attention"]) == pytest.approx(maps, rel=1e-5)
    assert float(losses.terms["mean"]) == pytest.approx(means, rel=1e-5)
    assert float(losses.total.detach()) == pytest.approx(100 * maps + means, rel=1e-5)


def linear_problem():
    rng = torch.Generator().manual_seed(1)
    n, p, steps = 6, 3, 5
    s = torch.randn(n, p, generator=rng, dtype=F64)
    y = torch.randn(n, 1, generator=rng, dtype=F64)
    start, target = torch.randn(2, p, generator=rng, dtype=F64)
    return s, y, start, target, torch.tensor(0.3, dtype=F64), steps


def squared(theta, step, images, targets):
    residual = images @ theta - targets[:, 0]
    return residual.square().sum() / (2 * len(images))


def closed_form(s, y, start, target, eta, steps, exact):
    """Gradients in images, targets and rate by the adjoint recursion, written out."""
    n, path = len(s), [start]
    for _ in range(steps):
        path.append(path[-1] - eta / n * s.T @ (s @ path[-1] - y[:, 0]))
    lam = 2 * (path[-1] - target) / (start - target).square().sum()
    a = torch.eye(len(start), dtype=F64) - eta / n * s.T @ s
    of_s, of_y, of_eta = torch.zeros_like(s), torch.zeros_like(y), 0.0
    for k in reversed(range(steps)):
        r = s @ path[k] - y[:, 0]
        of_s -= eta / n * (torch.outer(r, lam) + torch.outer(s @ lam, path[k]))
        of_y[:, 0] += eta / n * s @ lam
        of_eta -= float(lam @ s.T @ r) / n
        lam = a.T @ lam if exact else lam
    return of_s, of_y, of_eta


@pytest.mark.parametrize("exact", [True, False])
def test_gradients_of_a_linear_trajectory(exact: bool) -> None:
    s, y, start, target, eta, steps = linear_problem()
    for each in (s, y, eta):
        each.requires_grad_()
    reached = rollout(squared, start, s, y, eta, steps, exact=exact)
    normalized_distance(reached, target, start).backward()
    with torch.no_grad():
        wanted = closed_form(s, y, start, target, eta, steps, exact)
    torch.testing.assert_close(s.grad, wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y.grad, wanted[1], rtol=1e-12, atol=1e-12)
    assert float(eta.grad) == pytest.approx(wanted[2], rel=1e-12)


def test_the_rollout_is_the_unrolled_loop() -> None:
    torch.manual_seed(0)
    net = make_network("convnet-1-3-instance", 2, (1, 4, 4)).double()
    images = torch.randn(4, 1, 4, 4, dtype=F64, requires_grad=True)
    labels, eta = torch.tensor([0, 0, 1, 1]), torch.tensor(0.1, dtype=F64, requires_grad=True)
    moved = unrolled(net, lambda g: F.cross_entropy(g(images), labels), lr=eta, steps=3)
    flat = torch.cat([each.flatten() for each in moved.values()])
    expected = torch.autograd.grad(flat.square().sum(), (images, eta))

    def loss(theta, step, x, targets):
        return F.cross_entropy(run_with(net, theta, x), labels)

    reached = rollout(loss, weights_of(net), images, None, eta, 3)
    torch.testing.assert_close(reached, flat.detach())
    found = torch.autograd.grad(reached.square().sum(), (images, eta))
    torch.testing.assert_close(found, expected)


def test_a_student_with_the_experts_data_has_no_distance(pool_of) -> None:
    pool = pool_of((3, 3))
    torch.manual_seed(0)
    net = make_network("convnet-1-3-instance", 2, pool.shape).double()
    images = pool.normalized(torch.arange(6)).double()
    student = SyntheticImages(images, pool.labels, lr=0.1)
    student.double()
    distiller = TrajectoryMatching(student, net, Siamese(()), steps=4, batch=6)
    start = torch.cat([p.detach().flatten() for p in net.parameters()])
    sgd = torch.optim.SGD(
        [p.requires_grad_() for p in net.parameters()], lr=float(student.lr.detach())
    )
    for _ in range(4):
        sgd.zero_grad()
        F.cross_entropy(net(images), pool.labels).backward()
        sgd.step()
    target = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert float(distiller((start, target), 0).terms["trajectory"]) < 1e-20


def test_above_the_threshold_nothing_changes(pool_of) -> None:
    pool = pool_of((3, 3))
    torch.manual_seed(0)
    net = make_network("convnet-1-3-instance", 2, pool.shape)
    size = sum(p.numel() for p in net.parameters())
    start = 0.3 * torch.randn(size)
    pair = start, start + 1e-3
    for threshold, moves in ((1e-9, False), (math.inf, True)):
        student = SyntheticImages.start(pool, 1, "real", torch.Generator().manual_seed(0))
        student = SyntheticImages(student.images.detach(), student.labels, lr=0.1)
        before = student.images.detach().clone()
        distiller = TrajectoryMatching(student, net, steps=2, batch=2, threshold=threshold)
        make = partial(matching_optimizer, rate=0.1)
        fit(distiller, [pair], steps=2, lr=10.0, optimizer=make, progress=False)
        assert torch.equal(student.images, before) != moves


def test_the_window_grows() -> None:
    window = Window(0, 20, opening=10, growth=1000)
    assert [window.end(step) for step in (0, 999, 1000, 5000)] == [10, 19, 20, 20]
    with pytest.raises(ConfigError, match="first < opening <= last"):
        Window(5, 4)


@pytest.mark.parametrize("flatness", [None, Flatness(0.0, 0.0)])
def test_an_expert_keeps_the_weights_of_every_epoch(flatness, pool_of) -> None:
    pool = pool_of((4, 4))

    def network():
        torch.manual_seed(0)
        return make_network("convnet-1-3-instance", 2, pool.shape)

    samples = Samples(pool, pool.labels, 4)
    expert = Expert(network(), Siamese(()), 3, 2, flatness, torch.float32)
    fit(expert, samples, epochs=3, lr=0.1, optimizer=torch.optim.SGD, progress=False)
    plain = Learner(network())
    fit(plain, samples, epochs=1, lr=0.1, optimizer=torch.optim.SGD, progress=False)
    found = torch.cat([p.detach().flatten() for p in plain.student.parameters()])
    torch.testing.assert_close(expert.trajectory[1], found)
    with pytest.raises(ConfigError, match="use instance norm"):
        Expert(make_network("convnet-1-3-batch", 2, pool.shape), Siamese(()), 1, 1)


def test_the_distance_of_statistics() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 4, dtype=F64)
    norm = nn.BatchNorm2d(3).double()
    norm.running_mean, norm.running_var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    assert float(statistics_distance([x], [norm])) < 1e-12
    moved = x + torch.tensor([3.0, 0.0, 4.0], dtype=F64)[:, None, None]
    assert float(statistics_distance([moved], [norm], first=1)) == pytest.approx(5)
    assert float(statistics_distance([moved], [norm])) == pytest.approx(50)


def test_crops_begin_large() -> None:
    for curriculum, expected in (
        ("cosine", (1, 0.8653, 0.54, 0.2147, 0.08)), ("linear", (1, 0.77, 0.54, 0.31, 0.08)),
        ("step", (1, 1, 1, 1, 0.08)), ("none", (0.08,) * 5),
    ):  # fmt: skip
        found = [Crops(curriculum).least(u / 4) for u in range(5)]
        assert found == pytest.approx(expected, abs=1e-4), curriculum
    assert Crops("cosine", milestone=0.5).least(0.5) == 0.08
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(Crops("whole", roll=0, flip=False)(x, 0.5), x)
    with pytest.raises(ConfigError, match="milestone"):
        Crops(milestone=0)


def test_recovery_needs_batch_norm_and_stays_in_range(pool_of) -> None:
    pool = pool_of((3, 3))
    student = SyntheticImages.start(pool, 1, "noise", torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="must have batch norm"):
        Recovery(student, make_network("convnet-1-3-instance", 2, pool.shape), pool)
    with pytest.raises(ConfigError, match="output for each of 2 classes of the images, got 5"):
        Recovery(student, make_network("convnet-1-3-batch", 5, pool.shape), pool)
    torch.manual_seed(0)
    network = make_network("convnet-1-3-batch", 2, pool.shape)
    with torch.no_grad():
        student.images.mul_(100)
    distiller = Recovery(student, network, pool, Crops("whole"))
    rows = fit(distiller, [torch.zeros(1)], steps=30, lr=0.1, progress=False)
    student.clamp()
    pixels = student.images.detach() * 0.25 + 0.5
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1 + 1e-6
    assert rows[-1]["statistics"] < rows[0]["statistics"]


def test_one_draw_for_real_and_synthetic_images() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 8, 8).expand(6, -1, -1, -1)
    siamese = Siamese()
    draw = siamese.draw(2, torch.Generator().manual_seed(5), (8, 8))
    seen = siamese(x, draw, 3)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[3], seen[5])
    assert not torch.equal(seen[0], seen[3])
    again = siamese(x, siamese.draw(2, torch.Generator().manual_seed(5), (8, 8)), 3)
    assert torch.equal(seen, again)


def test_a_crop_is_a_shift_and_a_flip_a_mirror() -> None:
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    crop = Siamese(("crop",))
    seen = crop(x, crop.draw(64, torch.Generator().manual_seed(0), (8, 8)))
    shifted = {(i, j): F.pad(x, (j, -j, i, -i)) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    which = [
        next(k for k, v in shifted.items() if torch.allclose(v[n], seen[n], atol=1e-5))
        for n in range(64)
    ]
    assert len(set(which)) == 9
    flip = Siamese(("flip",))
    seen = flip(x, flip.draw(64, torch.Generator().manual_seed(0), (8, 8)))
    mirrored = [torch.allclose(seen[n], x[n].flip(2), atol=1e-5) for n in range(64)]
    kept = [torch.allclose(seen[n], x[n], atol=1e-5) for n in range(64)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(kept) < 48
    cut = Siamese(("cutout",))
    zeros = (cut(torch.ones_like(x), cut.draw(64, size=(8, 8))) == 0).sum((1, 2, 3))
    assert int(zeros.max()) == 16
    assert int(zeros.min()) >= 4
    with pytest.raises(ConfigError, match="did you mean 'color'"):
        Siamese(("colour",))


def test_the_augmentation_has_a_gradient() -> None:
    x = torch.rand(2, 1, 4, 4, dtype=F64, requires_grad=True)
    for name in ("color", "crop", "cutout", "flip", "scale", "rotate"):
        op = Siamese((name,))
        draw = op.draw(2, torch.Generator().manual_seed(1), (4, 4))
        assert torch.autograd.gradcheck(lambda x, op=op, draw=draw: op(x, draw), (x,))
