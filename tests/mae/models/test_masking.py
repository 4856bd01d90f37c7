from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import ConfigError
from potstill.mae import BlockMasking, GridMasking, RandomMasking, num_visible

MASKINGS = [RandomMasking(0.75), BlockMasking(0.75, side=2), GridMasking(0.75)]
everywhere = pytest.mark.parametrize("masking", MASKINGS, ids=lambda m: type(m).__name__)


@pytest.mark.parametrize(
    ("ratio", "visible"), [(0.0, 196), (0.75, 49), (0.9, 19), (0.95, 9), (0.98, 3), (0.99, 1)]
)
def test_published_counts(ratio, visible):
    assert num_visible(196, ratio) == visible


@given(patches=st.integers(1, 2000), percent=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_count_is_the_exact_floor(patches, percent):
    exact = math.floor(patches * (1 - Fraction(percent, 100)))
    if exact:
        assert num_visible(patches, percent / 100) == exact
    else:
        with pytest.raises(ConfigError, match="at least one of"):
            num_visible(patches, percent / 100)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
@everywhere
def test_ratio_outside_the_range_is_refused(masking, ratio):
    with pytest.raises(ConfigError, match=rf"ratio must be in \[0, 1\), got {ratio}"):
        type(masking)(ratio)
    with pytest.raises(ConfigError, match=r"ratio must be in \[0, 1\)"):
        num_visible(16, ratio)


@everywhere
def test_ratio_that_hides_everything_is_refused(masking):
    with pytest.raises(ConfigError, match=r"at least one of 16 patches visible, got 0\.98"):
        type(masking)(0.98)(2, (4, 4))


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    batch=st.integers(1, 4),
    ratio=st.floats(0, 0.99),
    kind=st.sampled_from([RandomMasking, BlockMasking, GridMasking]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_plan_is_a_permutation(rows, columns, batch, ratio, kind, seed):
    length = rows * columns
    if math.floor(length * (1 - ratio) + 1e-6) < 1:
        return
    plan = kind(ratio)(batch, (rows, columns), generator=torch.Generator().manual_seed(seed))
    order = torch.cat((plan.keep, plan.hidden), dim=1)
    assert plan.keep.shape == (batch, num_visible(length, ratio))
    expected = torch.arange(length).expand(batch, -1)
    torch.testing.assert_close(order.sort(dim=1).values, expected)
    # unshuffle(shuffle(x)) = x
    torch.testing.assert_close(order.gather(1, plan.restore), expected)
    torch.testing.assert_close(plan.mask.gather(1, plan.keep).sum(), torch.tensor(0.0))
    assert plan.mask.sum() == plan.hidden.numel()


@everywhere
def test_same_generator_same_plan(masking):
    one, two, other = (
        masking(4, (14, 14), generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    torch.testing.assert_close(one, two)
    assert not torch.equal(one.keep, other.keep)
    assert not torch.equal(one.keep[0], one.keep[1]), "images of a batch must differ"


def test_random_masking_keeps_each_patch_equally_often():
    plan = RandomMasking(0.75)(8000, (4, 4), generator=torch.Generator().manual_seed(0))
    share = 1 - plan.mask.mean(dim=0)
    # standard error sqrt(.25 * .75 / 8000) = .0048; 4.5 of them
    torch.testing.assert_close(share, torch.full((16,), 0.25), atol=0.022, rtol=0)


@everywhere
def test_first_hidden_patches_are_a_random_subset(masking):
    """They neighbour each other no more often than others drawn from the same hidden patches."""
    plan = masking(400, (16, 16), generator=torch.Generator().manual_seed(0))
    order = torch.rand(plan.hidden.shape, generator=torch.Generator().manual_seed(1)).argsort(1)

    def neighbours(hidden):
        chosen = torch.zeros(400, 256).scatter_(1, hidden[:, :48], 1.0).view(400, 16, 16)
        return (chosen[:, 1:] * chosen[:, :-1]).sum() + (chosen[:, :, 1:] * chosen[:, :, :-1]).sum()

    expected = neighbours(plan.hidden.gather(1, order))
    torch.testing.assert_close(neighbours(plan.hidden), expected, rtol=0.1, atol=0)


def test_blocks_are_hidden_whole():
    masking = BlockMasking(0.75, side=4)
    mask = masking(64, (16, 16), generator=torch.Generator().manual_seed(0)).mask.view(64, 16, 16)
    random = RandomMasking(0.75)(64, (16, 16)).mask.view(64, 16, 16)

    def edges(m):
        return (m[:, 1:] != m[:, :-1]).float().mean()

    assert edges(mask) < 0.3 * edges(random)


def test_block_of_one_patch_is_random_masking():
    counts = BlockMasking(0.5, side=1)(4000, (3, 4)).mask.mean(dim=0)
    torch.testing.assert_close(counts, torch.full((12,), 0.5), atol=0.036, rtol=0)


def test_block_side_below_one_is_refused():
    with pytest.raises(ConfigError, match="side must be at least 1, got 0"):
        BlockMasking(0.75, side=0)


def test_grid_keeps_one_patch_of_each_cell():
    plan = GridMasking(0.75)(32, (14, 14), generator=torch.Generator().manual_seed(0))
    kept = 1 - plan.mask.view(32, 7, 2, 7, 2)
    torch.testing.assert_close(kept.sum(dim=(2, 4)), torch.ones(32, 7, 7))


def test_grid_at_one_half_is_a_checkerboard():
    mask = GridMasking(0.5)(8, (8, 8)).mask.view(8, 8, 8)
    assert bool((mask[:, 1:] != mask[:, :-1]).all())
    assert bool((mask[:, :, 1:] != mask[:, :, :-1]).all())


def test_repr_names_the_options():
    assert repr(BlockMasking(0.5, side=3)) == "BlockMasking(ratio=0.5, side=3)"
