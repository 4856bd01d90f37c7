"""Pools of hard poses and rays."""

import pytest
import torch

from potstill.core.errors import ConfigError
from potstill.nerf.distill.pools import Pools


def draw():
    return torch.Generator().manual_seed(0)


def test_the_worst_rays_stay_and_the_oldest_go():
    pools = Pools(views=4, rays=3, share=0.2)
    assert len(pools.hard_rays(5, draw())[0]) == 0
    origins = torch.arange(10.0)[:, None].expand(10, 3)
    error = torch.arange(10.0)
    pools.keep_rays(origins, -origins, error)
    assert sorted(pools.rays[:2, 0].tolist()) == [8.0, 9.0]
    pools.keep_rays(origins, -origins, -error)
    assert {0.0, 1.0} < set(pools.rays[:, 0].tolist())  # one of the first two was written over
    a, b = pools.hard_rays(50, draw())
    assert torch.equal(a, -b)
    assert len(a) == 50


def test_the_worst_poses_of_a_set_come_back():
    pools = Pools(views=10, poses=5)
    poses = torch.arange(10.0)[:, None, None].expand(10, 4, 4)
    pools.note(torch.tensor([3, 3, 7]), torch.tensor([0.1, 0.3, 0.25]))
    pools.end_set(poses)
    assert pools.hard_poses(4, draw())[:, 0, 0].tolist() == [7.0] * 4  # a mean, not a sum
    assert float(pools.errors.sum()) == 0


def test_checkpoints_hold_the_pools():
    pools, again = Pools(views=4, rays=8), Pools(views=4, rays=8)
    pools.keep_rays(torch.ones(5, 3), torch.ones(5, 3), torch.rand(5))
    again.load_state_dict(pools.state_dict())
    assert torch.equal(again.hard_rays(2, draw())[0], torch.ones(2, 3))


def test_impossible_pools_are_refused():
    with pytest.raises(ConfigError, match="share in"):
        Pools(views=4, share=0.6)
