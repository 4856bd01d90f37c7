"""Which images of one class to keep: graph cut, herding, k-centre, random."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from potstill.core import ConfigError

__all__ = ["RULES", "graph_cut", "graph_cut_bins", "herding", "k_center", "random_rows"]

_TIE = 1e-9  # relative: gains that are closer are equal, and the first of them is taken


def graph_cut(similarity: Float[Tensor, "images images"], count: int) -> Int[Tensor, " count"]:
    """Greedy picks of the graph-cut gain, in the order of the picks.

    The gain of x is ``sum_left s(p, x) - 2 sum_picked s(p, x)``, over the images that were there
    at the start and those that are picked. It is kept up to date by one row of the matrix a pick:
    O(images) each, and exact. Of equal gains the lowest index is taken.

    Source: Iyer et al., Submodular Combinatorial Information Measures, ALT 2021 (graph cut, with
    the 2 of DeepCore and of the code of Zhou et al., Dataset Quantization, ICCV 2023, Sec. 3.2).

    Args:
        similarity: Symmetric.
        count: Number of picks.

    Raises:
        ConfigError: More picks than images.

    Example:
        >>> rows = [[1, .9, .2, .1], [.9, 1, .3, .2], [.2, .3, 1, .8], [.1, .2, .8, 1]]
        >>> graph_cut(torch.tensor(rows, dtype=torch.float64), 3)
        tensor([1, 2, 3])
    """
    _require(count, len(similarity), "graph_cut")
    gain, picks = similarity.sum(0).double(), []
    for _ in range(count):
        picks.append(pick := _largest(gain))
        gain -= 2 * similarity[pick]
        gain[pick] = -torch.inf
    return torch.tensor(picks, dtype=torch.int64)


def graph_cut_bins(
    features: Float[Tensor, "images features"], bins: int
) -> list[Int[Tensor, " _"]]:
    """Divide images into bins by repeated graph cuts, representative ones first, diverse ones last.

    Each bin is a `graph_cut` among those that are left, with the similarity ``(1 + cosine) / 2``;
    together the bins have every image once.

    Source: Zhou et al., Dataset Quantization, ICCV 2023, Sec. 3.2; similarity of their code.

    Args:
        features: Features of the images of one class.
        bins: Number of bins, equal but for one image.

    Raises:
        ConfigError: More bins than images.
    """
    _require(bins, len(features), "graph_cut_bins", "bins")
    unit = F.normalize(features.double(), dim=1)
    left = torch.arange(len(unit))
    found: list[Tensor] = []
    similarity = (1 + unit @ unit.T) / 2
    for number in range(bins):
        share = (len(unit) - sum(len(each) for each in found)) // (bins - number)
        picks = graph_cut(similarity, share)
        found.append(left[picks])
        kept = torch.ones(len(left), dtype=torch.bool)
        kept[picks] = False
        left, similarity = left[kept], similarity[kept][:, kept]
    return found


def from_bins(
    features: Tensor, count: int, generator: torch.Generator, bins: int = 10
) -> Int[Tensor, " count"]:
    """A random share of every bin of `graph_cut_bins`, the first bins first.

    Source: Zhou et al., ICCV 2023, Sec. 3.2.
    """
    found = graph_cut_bins(features, min(bins, len(features)))
    sizes = torch.tensor([len(each) for each in found], dtype=torch.float64)
    ends = (sizes.cumsum(0) * count / sizes.sum()).round().long()
    wanted = ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist()
    picked = [
        each[torch.randperm(len(each), generator=generator)[:number]]
        for each, number in zip(found, wanted, strict=True)
    ]
    return torch.cat(picked)


def herding(features: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Picks whose mean follows the mean of the features, in the order of the picks.

    Source: Welling, Herding Dynamical Weights to Learn, ICML 2009, Eq. (4), as in iCaRL,
    Rebuffi et al., CVPR 2017, Algorithm 4.

    Raises:
        ConfigError: More picks than images.
    """
    _require(count, len(features), "herding")
    z = features.double()
    mean, total = z.mean(0), torch.zeros_like(z[0])
    picks: list[int] = []
    squares = z.square().sum(1)
    for number in range(1, count + 1):
        wanted = number * mean - total
        away = 2 * (z @ wanted) - squares  # the nearer, the larger
        away[picks] = -torch.inf
        picks.append(_largest(away))
        total += z[picks[-1]]
    return torch.tensor(picks, dtype=torch.int64)


def k_center(features: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Picks that are each the farthest from those before; the first is nearest to the mean.

    Source: Gonzalez, Clustering to Minimize the Maximum Intercluster Distance, 1985; as in Sener
    and Savarese, ICLR 2018, Algorithm 1.

    Raises:
        ConfigError: More picks than images.
    """
    _require(count, len(features), "k_center")
    z = features.double()
    picks = [_largest(-(z - z.mean(0)).square().sum(1))]
    nearest = torch.full((len(z),), torch.inf, dtype=torch.float64)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (z - z[picks[-1]]).square().sum(1))
        nearest[picks[-1]] = -torch.inf
        picks.append(_largest(nearest))
    return torch.tensor(picks, dtype=torch.int64)


def random_rows(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A random sample.

    Raises:
        ConfigError: More picks than images.
    """
    _require(count, len(features), "random_rows")
    return torch.randperm(len(features), generator=generator)[:count]


Rule = Callable[[Tensor, int, torch.Generator], Tensor]

RULES: Mapping[str, Rule] = {
    "graphcut": from_bins, "herding": herding, "kcenter": k_center, "random": random_rows,
}  # fmt: skip


def _largest(values: Tensor) -> int:
    """The first of the largest values, where equal means up to rounding."""
    best = float(values.max())
    return int((values >= best - _TIE * max(abs(best), 1.0)).nonzero()[0])


def _require(count: int, images: int, caller: str, name: str = "count") -> None:
    if not 1 <= count <= images:
        raise ConfigError(f"{caller}: {name} must be from 1 to the {images} images, got {count}")
