"""Pose priors: where their cameras stand, what they see, and their files."""

import math

import pytest
import torch

from potstill.core.errors import ConfigError, DataError
from potstill.nerf import Space
from potstill.nerf.cameras import orbit, pinhole
from potstill.nerf.distill.priors import (
    BoxPrior,
    NearPrior,
    SpherePrior,
    about,
    load_prior,
    prior_of,
    turns,
)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


LENS = pinhole(20, 10, 0.7)


def test_a_sphere_keeps_its_ranges_and_looks_at_its_target():
    prior = SpherePrior(LENS, (3.0, 4.0), (0.2, 0.9), target=(1.0, 0.0, 0.5))
    poses = prior.poses(200, draw())
    away = poses[:, :3, 3] - torch.tensor([1.0, 0.0, 0.5])
    distance = away.norm(dim=1)
    lift = torch.asin(away[:, 2] / distance)
    assert 3 <= float(distance.min()) < 3.1
    assert 3.9 < float(distance.max()) <= 4
    assert 0.2 - 1e-4 <= float(lift.min()) < 0.25
    assert 0.85 < float(lift.max()) <= 0.9 + 1e-4
    torch.testing.assert_close(poses[:, :3, 2], away / distance[:, None], rtol=0, atol=1e-5)


def test_a_sphere_is_even_in_area():
    prior = SpherePrior(LENS, (1.0, 1.0), (0.0, 1.5))
    heights = prior.poses(4000, draw())[:, 2, 3] / math.sin(1.5)
    counts = torch.histc(heights, 4, 0, 1)
    assert float(counts.min()) > 880  # 1,000 each; uniform angles would give 680 in one


@pytest.mark.parametrize("up", [(0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 2.0, 0.5)])
def test_up_may_be_anything(up):
    poses = SpherePrior(LENS, (2.0, 2.0), (0.3, 0.3), up=up).poses(10, draw())
    up = torch.nn.functional.normalize(torch.tensor(up), dim=0)
    torch.testing.assert_close(poses[:, :3, 3] @ up, torch.full((10,), 2 * math.sin(0.3)))
    assert float((poses[:, :3, 1] @ up).min()) > 0.9


def test_a_box_and_the_neighbourhood_of_a_list():
    poses = BoxPrior(LENS, (-1.0, -1.0, 0.0), (1.0, 1.0, 0.1)).poses(50, draw())
    assert float(poses[:, :2, 3].abs().max()) <= 1
    given = orbit(6, 3.0, 20, 10, 0.7)
    exact = NearPrior(given, spread=0.0, angle=0.0).poses(30, draw())
    apart = (exact[:, None] - given.poses[None]).abs().amax((2, 3)).amin(1)
    assert float(apart.max()) == 0
    near = NearPrior(given).poses(30, draw())
    moved = torch.cdist(near[:, :3, 3], given.poses[:, :3, 3]).amin(1)
    assert 0 < float(moved.max()) < 3


def test_cameras_are_rigid_and_hard_poses_come_back_near():
    for prior in (SpherePrior(LENS, (2.0, 2.0)), NearPrior(orbit(6, 3.0, 20, 10, 0.7))):
        cameras = prior.cameras(5, draw())  # refuses poses that are not rigid
        again = prior.moved(cameras.poses, draw(1))
        assert not torch.equal(again, cameras.poses)
        angle = (again[:, :3, 2] * cameras.poses[:, :3, 2]).sum(1).clamp(-1, 1).acos()
        assert float(angle.max()) < math.sqrt(3) * math.pi / 20 + 1e-3


def test_turning_about_a_point_keeps_it():
    point = torch.tensor([1.0, 2.0, 3.0])
    moves = about(point, turns(torch.rand(4, 3)))
    torch.testing.assert_close(
        (moves @ torch.cat([point, torch.ones(1)]))[:, :3], point.expand(4, 3)
    )


def test_what_fits_a_scene():
    cameras = orbit(6, 3.0, 20, 10, 0.7)
    assert prior_of(cameras, Space()).kind == "sphere"
    assert prior_of(cameras, Space("contracted", near=0.1)).kind == "near"
    front = cameras[:1]
    assert prior_of(front, Space("ndc", near=1.0)).kind == "box"


@pytest.mark.parametrize(
    "prior",
    [
        SpherePrior(LENS, (2.0, 3.0), up=(0.0, 1.0, 0.0)),
        BoxPrior(LENS, (-1.0, -1.0, 0.0), (1.0, 1.0, 0.1)),
        NearPrior(orbit(6, 3.0, 20, 10, 0.7), spread=0.2),
    ],
)
def test_files_give_the_same_prior_back(prior, tmp_path):
    again = load_prior(prior.save(tmp_path / "prior.json"))
    assert torch.equal(again.poses(8, draw()), prior.poses(8, draw()))
    assert torch.equal(again.lens.intrinsics, prior.lens.intrinsics)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="radius must be a positive range"):
        SpherePrior(LENS, (3.0, 2.0))
    with pytest.raises(ConfigError, match="elevation must be a range"):
        SpherePrior(LENS, (2.0, 3.0), (0.0, 1.6))
    with pytest.raises(ConfigError, match="target must lie outside"):
        BoxPrior(LENS, (-1.0,) * 3, (1.0,) * 3, target=(0.0, 0.0, 0.0))
    with pytest.raises(ConfigError, match="angle in"):
        pinhole(10, 10, 0.0)
    with pytest.raises(DataError, match="must be a pose prior"):
        load_prior(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"kind": "spher", "lens": {}}')
    with pytest.raises(DataError, match="must be a pose prior, got"):
        load_prior(tmp_path / "bad.json")
