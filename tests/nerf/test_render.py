"""Marching, compositing and occupancy against closed forms and naive loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import ConfigError, DataError, ShapeError
from potstill.nerf import Occupancy, Samples, Space, composite, march, render_rays, weights

KINDS = ["box", "contracted", "ndc"]


def some_space(kind):
    return Space(kind, (-1.0,) * 3, (1.0,) * 3, near=0.1, far=50.0, steps=64, lens=(1.5, 1.8))


def some_rays(space, count=60, seed=0):
    draw = torch.Generator().manual_seed(seed)
    origins = torch.randn(count, 3, generator=draw) * 0.3 + torch.tensor([0.0, 0.0, 2.0])
    aims = torch.randn(count, 3, generator=draw) * 0.4
    if space.kind == "ndc":
        origins, aims = origins - torch.tensor([0, 0, 2.0]), aims - torch.tensor([0, 0, 5.0])
    return space.trace(origins, torch.nn.functional.normalize(aims - origins, dim=1))


def naive(rays, space, occupancy, jitter):
    """Samples one ray and step at a time."""
    edges, out = space.edges(), []
    for r in range(len(rays)):
        for k in range(space.steps):
            start = rays.base[r] + edges[k]
            if not start < rays.far[r]:
                break
            t = start + jitter[r] * (edges[k + 1] - edges[k])
            u = space.unit((rays.origins[r] + t * rays.directions[r])[None])
            if bool(((u >= 0) & (u <= 1)).all()) and bool(occupancy.occupied(u)):
                out.append((r, float(t)))
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_march_is_the_naive_loop(kind, backend):
    space = some_space(kind)
    occupancy = Occupancy(8)
    draw = torch.Generator().manual_seed(3)
    occupancy.binaries.copy_(torch.rand(1, 8, 8, 8, generator=draw) < 0.3)
    rays, jitter = some_rays(space), torch.rand(60, generator=draw)
    samples = march(rays, space, occupancy, jitter, backend)
    expected = naive(rays, space, occupancy, jitter)
    assert len(expected) > 50
    found = list(zip(samples.ray.tolist(), samples.t.tolist(), strict=True))
    # a point within a rounding of a cell's face may fall on either side
    assert abs(len(found) - len(expected)) <= 2
    near = {(r, round(t, 4)) for r, t in expected}
    assert sum((r, round(t, 4)) in near for r, t in found) >= 0.97 * len(found)
    assert int(samples.counts.sum()) == len(samples.t)


@pytest.mark.parametrize("kind", KINDS)
def test_native_and_torch_march_agree(kind):
    space, occupancy = some_space(kind), Occupancy(16)
    occupancy.binaries.copy_(torch.rand(1, 16, 16, 16) < 0.4)
    rays = some_rays(space, 500)
    ours = march(rays, space, occupancy, backend="native")
    theirs = march(rays, space, occupancy, backend="torch")
    assert (ours.counts - theirs.counts).abs().sum() <= 3
    full = Occupancy(4)
    a, b = (march(rays, space, full, backend=name) for name in ("native", "torch"))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_rays_that_miss_have_no_samples_and_show_the_background():
    space, occupancy = some_space("box"), Occupancy(4)
    rays = space.trace(torch.tensor([[5.0, 5.0, 5.0]] * 2), torch.tensor([[0.0, 0.0, 1.0]] * 2))
    samples = march(rays, space, occupancy)
    assert samples.counts.tolist() == [0, 0]
    seen = composite(torch.zeros(0), torch.zeros(0, 3), samples, background=0.25)
    assert seen.rgb.tolist() == [[0.25] * 3] * 2
    assert seen.opacity.tolist() == seen.depth.tolist() == [0.0, 0.0]


class Fog:
    """A constant medium: its transmittance is known."""

    def __init__(self, sigma, color):
        self.sigma, self.color = sigma, color

    def query(self, points):
        density = torch.full((len(points),), self.sigma)
        return density, lambda chosen, views: self.color.expand(len(chosen), 3)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 20.0])
def test_quadrature_of_a_constant_medium_is_exact(sigma):
    space = Space("box", (0.0,) * 3, (1.0,) * 3, near=0.0, steps=173)
    rays = space.trace(torch.tensor([[0.5, 0.5, -1.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    samples = march(rays, space, Occupancy(4))
    color = torch.tensor([0.2, 0.5, 0.9])
    seen = render_rays(Fog(sigma, color), rays, samples, background=1.0)
    length = float(samples.dt.sum())  # whole steps: the last one may reach out of the box
    assert length == pytest.approx(1.0, abs=0.011)
    clear = math.exp(-sigma * length)
    expected = color * (1 - clear) + clear
    # samples of weight below 1e-4 are left out: at most 173 of them
    torch.testing.assert_close(seen.rgb[0], expected, rtol=0, atol=2e-3 if sigma > 5 else 1e-5)


class Layers:
    """Density and colour that change along x; counts the points that it is asked about."""

    asked = 0

    def query(self, points):
        self.asked += len(points)
        density = 40 * (points[:, 0] > 0.1).float() + points[:, 1] ** 2
        return density, lambda chosen, views: points[chosen].sigmoid() * views.abs()


def test_front_to_back_is_the_same_picture_with_fewer_questions():
    space, occupancy = some_space("box"), Occupancy(8)
    occupancy.binaries.copy_(
        torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.8
    )
    rays, layers = some_rays(space, 200), Layers()
    samples = march(rays, space, occupancy)
    whole = render_rays(layers, rays, samples, background=0.5)
    assert whole.weight is not None
    assert layers.asked == len(samples.t)
    layers.asked = 0
    with torch.no_grad():
        parts = render_rays(layers, rays, samples, background=0.5)
    assert layers.asked < 0.9 * len(samples.t)
    for name in ("rgb", "opacity", "depth"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=2e-3)


def test_samples_are_cut_at_rays():
    space, occupancy = some_space("box"), Occupancy(4)
    samples = march(some_rays(space), space, occupancy)
    budget = int(samples.counts[:7].sum()) + 1
    cut = samples.within(budget)
    assert cut.counts.tolist() == samples.counts[:7].tolist()
    assert len(cut.t) == len(cut.ray) == len(cut.points) == budget - 1
    assert len(samples.within(0).counts) == 1
    kept = samples.some(samples.ray % 2 == 0)
    assert kept.counts[::2].tolist() == samples.counts[::2].tolist()
    assert not bool(kept.counts[1::2].any())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.integers(0, 1000))
def test_packed_rendering_is_batched_rendering(counts, seed):
    draw = torch.Generator().manual_seed(seed)
    total = sum(counts)
    sigma = torch.rand(total, generator=draw) * 30
    dt, t = torch.rand(total, generator=draw) * 0.2, torch.rand(total, generator=draw)
    rgb = torch.rand(total, 3, generator=draw)
    n = torch.tensor(counts)
    ray = torch.arange(len(counts)).repeat_interleave(n)
    samples = Samples(torch.zeros(total, 3), t, dt, ray, n)
    seen = composite(weights(sigma, samples), rgb, samples, 1.0)
    at = 0
    for r, count in enumerate(counts):
        light, color, depth = 1.0, torch.zeros(3, dtype=torch.float64), 0.0
        for k in range(at, at + count):
            alpha = 1 - math.exp(-float(sigma[k]) * float(dt[k]))
            color += light * alpha * rgb[k].double()
            depth += light * alpha * float(t[k])
            light *= 1 - alpha
        at += count
        assert seen.opacity[r].item() == pytest.approx(1 - light, abs=1e-5)
        assert seen.depth[r].item() == pytest.approx(depth, abs=1e-5)
        torch.testing.assert_close(seen.rgb[r].double(), color + light, rtol=0, atol=1e-5)


def test_weights_have_the_right_gradient_through_opaque_samples():
    samples = Samples(
        torch.zeros(5, 3),
        torch.rand(5),
        torch.full((5,), 0.3, dtype=torch.float64),
        torch.tensor([0, 0, 0, 1, 1]),
        torch.tensor([3, 2]),
    )
    sigma = torch.tensor([0.5, 60.0, 1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: weights(s, samples), (sigma,))
    with pytest.raises(ShapeError, match="counts must sum to the 4 samples, got 5"):
        weights(sigma[:4], samples._replace(dt=samples.dt[:4]))


def test_a_long_batch_costs_no_digits():
    count = 200_000
    n = torch.full((count // 10,), 10)
    dt = torch.full((count,), 0.01)
    ray = torch.arange(len(n)).repeat_interleave(n)
    samples = Samples(torch.zeros(count, 3), dt, dt, ray, n)
    w = weights(torch.full((count,), 50.0), samples).reshape(-1, 10)
    torch.testing.assert_close(w[-1], w[0], rtol=1e-5, atol=0)


def test_occupancy_finds_a_ball():
    occupancy = Occupancy(16)
    draw = torch.Generator().manual_seed(0)
    for _ in range(4):
        occupancy.update(lambda u: ((u - 0.5).norm(dim=1) < 0.3).float(), draw, everywhere=True)
    line = (torch.arange(16) + 0.5) / 16
    centers = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    distance = (centers - 0.5).norm(dim=1)
    occupied = occupancy.occupied(centers)
    assert bool(occupied[distance < 0.25].all())
    assert not bool(occupied[distance > 0.36].any())
    grown = occupancy.dilated()
    assert bool(grown[occupancy.binaries[0]].all())
    assert int(grown.sum()) > int(occupancy.binaries.sum())


def test_an_empty_grid_is_taken_back_in_training_and_refused_after_it():
    occupancy = Occupancy(8)
    occupancy.update(lambda u: torch.zeros(len(u)), torch.Generator().manual_seed(0), True)
    assert occupancy.share() == 1.0
    occupancy.binaries.zero_()
    with pytest.raises(DataError, match="export: the occupancy grid must have occupied cells"):
        occupancy.check("export")
    with pytest.raises(ConfigError, match="resolution must be at least 1"):
        Occupancy(0)


def test_occupancy_has_nerfaccs_buffers():
    shapes = {name: tuple(b.shape) for name, b in Occupancy(4).named_buffers()}
    assert shapes == {
        "resolution": (3,),
        "aabbs": (1, 6),
        "occs": (64,),
        "binaries": (1, 4, 4, 4),
    }


@pytest.mark.parametrize("kind", ["box", "contracted"])
def test_points_and_unit_are_inverse(kind):
    space = some_space(kind)
    points = torch.randn(200, 3) * (2 if kind == "contracted" else 0.4)
    unit = space.unit(points)
    if kind == "contracted":
        assert bool(((unit > 0) & (unit < 1)).all())
    torch.testing.assert_close(space.points(unit), points, rtol=1e-3, atol=1e-4)


def test_device_coordinates_are_those_of_the_point():
    """A point of the frustum: o + t d in device coordinates is its projection."""
    space = some_space("ndc")
    origin = torch.tensor([[0.1, -0.2, 0.3]])
    target = torch.tensor([[0.4, 0.5, -3.0]])
    rays = space.trace(origin, torch.nn.functional.normalize(target - origin, dim=1))
    a, b = space.lens
    x, y, z = target[0].tolist()
    device = torch.tensor([[-a * x / z, -b * y / z, 1 + 2 * space.near / z]])
    along = ((device - rays.origins) * rays.directions).sum()
    torch.testing.assert_close(rays.origins + along * rays.directions, device)
    torch.testing.assert_close(space.world(device), target, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near": 2.0, "far": 1.0}, "near must be below far, got 2.0 and 1.0"),
        ({"low": (1.0, 1.0, 1.0), "high": (1.0, 2.0, 2.0)}, "low must be below high"),
        ({"kind": "sphere"}, "kind must be box, contracted or ndc"),
        ({"kind": "contracted", "near": 0.0}, "near must be positive with contracted"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_impossible_spaces_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Space(**options)
