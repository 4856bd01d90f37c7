"""Regularisers against explicit sums."""

import pytest
import torch

from potstill.core.errors import ConfigError
from potstill.nerf import Samples, Space, load_scene, make_field, regularizers
from potstill.nerf.fields.factored import CPConfig, VMConfig
from potstill.nerf.fields.grid import GridConfig, GridField
from potstill.nerf.fields.hash import HashConfig
from potstill.nerf.from_images import train_field


def some_samples(space, counts):
    draw = torch.Generator().manual_seed(0)
    edges = space.edges().double()
    t = torch.cat([((edges[1:] + edges[:-1]) / 2)[3 : 3 + n] for n in counts])
    n = torch.tensor(counts)
    ray = torch.arange(len(counts)).repeat_interleave(n)
    weight = torch.rand(len(t), generator=draw, dtype=torch.float64)
    return weight, Samples(torch.zeros(len(t), 3), t, torch.ones_like(t), ray, n)


@pytest.mark.parametrize("kind", ["box", "contracted"])
def test_distortion_is_the_double_sum(kind):
    space = Space(kind, near=0.1, far=50.0, steps=40)
    counts = [5, 0, 9, 1]
    weight, samples = some_samples(space, counts)
    expected = 0.0
    for ray in range(len(counts)):
        of = samples.ray == ray
        w, s = weight[of], space.share(samples.t[of])
        expected += float((w[:, None] * w * (s[:, None] - s).abs()).sum())
        expected += float(w.square().sum()) / space.steps / 3
    weight.requires_grad_()
    ours = regularizers.distortion(weight, samples, space)
    assert float(ours.detach()) == pytest.approx(expected / len(counts), rel=1e-9)
    assert torch.autograd.gradcheck(lambda w: regularizers.distortion(w, samples, space), (weight,))


@pytest.mark.parametrize("kind", ["box", "contracted"])
def test_shares_of_a_ray_are_even(kind):
    space = Space(kind, near=0.1, far=50.0, steps=40)
    steps = space.share(space.edges()).diff()
    torch.testing.assert_close(steps, torch.full((40,), 1 / 40), rtol=1e-3, atol=0)


def test_no_samples_have_no_distortion():
    empty = Samples(torch.zeros(0, 3), *[torch.zeros(0)] * 3, torch.zeros(2, dtype=torch.int64))
    assert float(regularizers.distortion(torch.zeros(0), empty, Space())) == 0


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("vm", VMConfig(resolution=8, density=2, color=2)),
        ("cp", CPConfig(resolution=8, density=2, color=2)),
        ("grid", GridConfig(resolution=8, degree=1)),
    ],
)
def test_smooth_fields_have_no_variation(kind, config):
    field = make_field(kind, Space(), config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in field.named_parameters():
            if name in ("planes", "lines", "table"):
                values.fill_(0.3)
    assert float(regularizers.variation(*field.differences(draw)).detach()) == 0
    with torch.no_grad():
        for name, values in field.named_parameters():
            if name in ("planes", "lines", "table"):
                values.copy_(torch.rand(values.shape, generator=draw))
    found = regularizers.variation(*field.differences(draw))
    # neighbours are independent and uniform: the mean squared difference is 1/6 for each kind
    assert float(found.detach()) == pytest.approx(len(field.differences(draw)) / 6, rel=0.25)
    found.backward()


def test_vertices_that_are_not_stored_learn_nothing_from_variation():
    cells = torch.zeros(4, 4, 4, dtype=torch.bool)
    cells[0, 0, 0] = True
    field = GridField(GridConfig(8, 1), Space(), cells=cells)
    with torch.no_grad():
        field.table[:-1] = 1.0
    regularizers.variation(*field.differences(torch.Generator().manual_seed(0))).backward()
    assert field.table.grad is not None
    assert bool(field.table.grad[:-1].any())
    assert not bool(field.table.grad[-1].any())


def test_a_hash_table_has_no_neighbours():
    scene = load_scene("analytic", downsample=4)
    field = make_field("hash", scene.space, HashConfig(levels=2, log2_rows=8, finest=32))
    with pytest.raises(ConfigError, match="must be vm, cp or grid to have neighbours, got hash"):
        train_field(field, scene, steps=1, variation=0.1, progress=False)


def test_regularisers_do_what_they_are_for():
    """The same few steps without, and with each: fog is thinner, planes are smoother."""
    scene = load_scene("analytic", downsample=4)

    def last(distortion, variation):
        torch.manual_seed(0)
        config = VMConfig(resolution=16, density=4, color=4)
        field = make_field("vm", scene.space, config, occupancy=8)
        weights = {"distortion": distortion, "variation": variation}
        options = {"steps": 30, "samples": 2000, "progress": False}
        return train_field(field, scene, **weights, **options)[1][-1]

    # a weight of nearly nothing measures the term, too
    plain, thin, smooth = last(1e-9, 1e-9), last(1.0, 1e-9), last(1e-9, 0.1)
    assert thin["distortion"] < 0.8 * plain["distortion"]
    assert smooth["variation"] < 0.5 * plain["variation"]
