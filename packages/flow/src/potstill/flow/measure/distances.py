"""Distances between sets of samples, and what they cover."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from potstill.core import ConfigError, ShapeError, generator

__all__ = ["coverage", "fid", "gaussian_mmd2", "mmd2", "sliced_w2"]

Points = Float[Tensor, "points size"]
WIDTHS = (0.1, 0.3, 1.0, 3.0)


def mmd2(x: Points, y: Points, widths: Sequence[float] = WIDTHS) -> float:
    """Unbiased squared maximum mean discrepancy, the mean over Gaussian kernels; float64.

    Source: Gretton et al., JMLR 2012, Eq. (3).

    Args:
        x: Samples, at least two.
        y: Other samples, at least two.
        widths: Standard deviations h of the kernels ``exp(-|a - b|^2 / 2h^2)``.

    Raises:
        ShapeError: Samples of different size.
    """
    _check("mmd2", x, y)
    x, y = x.double(), y.double()
    total = 0.0
    for a, b, factor in ((x, x, 1.0), (y, y, 1.0), (x, y, -2.0)):
        pairs = len(a) * (len(b) - (a is b))
        for rows in a.split(1024):
            squares = torch.cdist(rows, b).square()
            for h in widths:
                total += factor * float((-squares / (2 * h * h)).exp().sum()) / pairs
        total -= factor * len(widths) * len(a) / pairs if a is b else 0.0  # the diagonal
    return total / len(widths)


def gaussian_mmd2(
    first: float, second: float, apart: float, size: int, width: float = 1.0
) -> float:
    """What `mmd2` estimates for two isotropic Gaussians, in closed form.

    Args:
        first: Standard deviation of the first.
        second: Standard deviation of the second.
        apart: Squared distance of their means.
        size: Numbers of a point.
        width: Standard deviation of the kernel.

    Example:
        >>> round(gaussian_mmd2(1.0, 0.5, 5.0, 2), 10)
        0.7073840108
    """

    def mean(variance: float, distance: float) -> float:
        total = width**2 + variance
        return float((width**2 / total) ** (size / 2) * math.exp(-distance / (2 * total)))

    both = mean(first**2 + second**2, apart)
    return mean(2 * first**2, 0) + mean(2 * second**2, 0) - 2 * both


def sliced_w2(x: Points, y: Points, directions: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein distance of order 2: root mean square over random directions; float64.

    Sets of different size are compared at the quantiles of the smaller one.

    Source: Bonneel et al., 2015.

    Args:
        x: Samples.
        y: Other samples.
        directions: Number of directions.
        seed: Seed of the directions.

    Raises:
        ShapeError: Samples of different size.
    """
    _check("sliced_w2", x, y)
    rng = generator("directions", seed)
    ways = torch.randn(x.shape[1], directions, generator=rng, dtype=torch.float64)
    ways = ways / ways.norm(dim=0)
    a, b = ((points.double() @ ways).sort(0).values for points in (x, y))
    fewer = min(len(a), len(b))
    levels = torch.arange(fewer) + 0.5
    a, b = (values[(levels * len(values) / fewer).long()] for values in (a, b))
    return float((a - b).square().mean().sqrt())


def coverage(samples: Points, reference: Points, neighbours: int = 5) -> float:
    """Share of reference points with a sample as near as their ``neighbours``-th neighbour.

    Source: Naeem et al., ICML 2020, Eq. (9).

    Args:
        samples: Samples to judge.
        reference: Reference points, more than ``neighbours``.
        neighbours: Rank of the neighbour that sets the radius.

    Raises:
        ConfigError: Too few reference points.
        ShapeError: Samples of different size.
    """
    _check("coverage", samples, reference)
    if len(reference) <= neighbours:
        raise ConfigError(
            f"coverage: reference must have more than {neighbours} points, got {len(reference)}"
        )
    reference, samples = reference.double(), samples.double()
    near = 0
    for rows in reference.split(1024):
        own = torch.cdist(rows, reference)
        radius = own.kthvalue(neighbours + 1, 1).values  # the first neighbour is the point itself
        near += int((torch.cdist(rows, samples).min(1).values <= radius).sum())
    return near / len(reference)


FEWEST = 10_000


def fid(samples: Tensor, reference: Tensor, feature: int | torch.nn.Module = 2048) -> float:
    """Fréchet Inception distance by torchmetrics, of images in [0, 1].

    Args:
        samples: [images 3 height width].
        reference: Real images.
        feature: As of torchmetrics: a layer of Inception, or a network that gives features.

    Raises:
        ConfigError: Fewer than 10,000 images: the figure is biased, and compares with nothing.
        BackendError: torchmetrics is not installed.
    """
    from potstill.core import BackendError

    if min(len(samples), len(reference)) < FEWEST:
        raise ConfigError(
            f"fid: at least {FEWEST} samples and reference images are needed, got {len(samples)} "
            f"and {len(reference)}; of fewer the figure is biased: take sliced_w2 or mmd2"
        )
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise BackendError(
            'fid needs torchmetrics, which is not installed: pip install "potstill-flow[fid]"'
        ) from error
    metric = FrechetInceptionDistance(feature=feature, normalize=True)
    for images, real in ((samples, False), (reference, True)):
        for part in images.split(256):
            metric.update(part, real=real)
    return float(metric.compute())


def _check(name: str, x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ShapeError(
            f"{name}: samples must be [points size] of one size, at least two of each, got "
            f"{list(x.shape)} and {list(y.shape)}; flatten images first"
        )
