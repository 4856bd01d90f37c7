"""Selection against hand-made figures, naive forms and properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.condense import (
    class_activation,
    graph_cut,
    graph_cut_bins,
    herding,
    k_center,
    make_network,
    quantize_pixels,
    select,
)
from potstill.core.errors import ConfigError

S = torch.tensor(
    [[1, 0.9, 0.2, 0.1], [0.9, 1, 0.3, 0.2], [0.2, 0.3, 1, 0.8], [0.1, 0.2, 0.8, 1]],
    dtype=torch.float64,
)


def test_graph_cut_takes_the_first_of_equal_gains() -> None:
    assert S.sum(0).tolist() == pytest.approx([2.2, 2.4, 2.3, 2.1])
    assert graph_cut(S, 4).tolist() == [1, 2, 3, 0]  # after 1: .4, -, 1.7, 1.7, an exact tie


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10_000))
def test_the_gain_kept_up_to_date_is_the_gain(size: int, seed: int) -> None:
    z = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    s = z @ z.T
    picked: list[int] = []
    for pick in graph_cut(s, size).tolist():
        left = [i for i in range(size) if i not in picked]
        gains = {i: float(s[:, i].sum() - 2 * s[picked, i].sum()) for i in left}
        assert gains[pick] == pytest.approx(max(gains.values()), rel=1e-9, abs=1e-9)
        picked.append(pick)


@pytest.mark.parametrize("bins", [1, 3, 10])
def test_bins_have_every_image_once(bins: int) -> None:
    found = graph_cut_bins(torch.randn(23, 4), bins)
    assert sorted(torch.cat(found).tolist()) == list(range(23))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_herding_follows_the_mean() -> None:
    z = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    picks, total = [], torch.zeros(5, dtype=torch.float64)
    for n in range(1, 6):
        distance = (z.mean(0) - (total + z) / n).norm(dim=1)
        distance[picks] = torch.inf
        picks.append(int(distance.argmin()))
        total += z[picks[-1]]
    assert herding(z, 5).tolist() == picks


def test_k_center_takes_the_farthest() -> None:
    z = torch.tensor([[0.0], [1.0], [10.0], [4.0]])
    assert k_center(z, 4).tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize("method", ["graphcut", "herding", "kcenter", "random"])
def test_a_share_of_each_class_is_kept(method: str, pool_of) -> None:
    pool = pool_of((20, 11))
    rows = select(pool, ratio=0.5, method=method)
    assert torch.bincount(pool.labels[rows]).tolist() == [10, 6]
    assert len(set(rows.tolist())) == len(rows)
    assert sorted(select(pool, ratio=1.0, method=method).tolist()) == list(range(31))
    assert torch.equal(rows, select(pool, ratio=0.5, method=method))


def test_features_may_be_a_network(pool_of) -> None:
    pool = pool_of((4, 4))
    torch.manual_seed(0)
    network = make_network("convnet-2-4-instance", 2, pool.shape)
    assert len(select(pool, ipc=2, features=network)) == 4


def test_bad_input_is_named(pool_of) -> None:
    pool = pool_of((5, 2))
    with pytest.raises(ConfigError, match="from 1 to the 2 images of class 'b', the smallest"):
        select(pool, ipc=3)
    with pytest.raises(ConfigError, match=r"ratio must be in \(0, 1\], got 1.5"):
        select(pool, ratio=1.5)
    with pytest.raises(ConfigError, match="one of them"):
        select(pool)
    with pytest.raises(ConfigError, match="did you mean 'herding'"):
        select(pool, ipc=1, method="herdin")
    with pytest.raises(ConfigError, match="a row for each of 7 images, got 3"):
        select(pool, ipc=1, features=torch.zeros(3, 2))


def test_the_least_important_patches_are_painted_again() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8)
    importance = torch.zeros(1, 8, 8)
    importance[0, :4, :4], importance[0, 4:, 4:] = 2, 1
    found = quantize_pixels(
        images, importance, drop=0.5, patch=4, inpaint=lambda x, mask: torch.full_like(x, -1)
    )
    assert found.kept.tolist() == [[[True, False], [False, True]]]
    assert found.share == 0.5
    assert bool((found.images[0, 0, :4, 4:] == -1).all())
    assert torch.equal(found.images[0, 0, :4, :4], images[0, 0, :4, :4])
    with pytest.raises(ConfigError, match="patch must divide 8 x 8, got 3"):
        quantize_pixels(images, importance, patch=3)


def test_class_activation_lies_where_the_class_is() -> None:
    torch.manual_seed(0)
    network = make_network("convnet-1-4-none", 2, (1, 8, 8)).eval()
    images = torch.zeros(2, 1, 8, 8)
    images[:, :, 1:3, 5:7] = 3
    found = class_activation(network, "blocks.0", images)
    assert found.shape == (2, 8, 8)
    assert bool((found >= 0).all())
